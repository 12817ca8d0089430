"""The layout of a stage: its tokens of a timestep, the field that it predicts, and from which token."""

from __future__ import annotations

from dataclasses import dataclass

from dmray.fields import Field, Token


@dataclass(frozen=True)
class Layout:
    """The tokens of each timestep, in order. `target` is predicted from the output at token `read_at` (from 0).

    `squash`: apply a Tanh to the prediction. The backbone is causal, so the prediction depends on the tokens up to and
    including `read_at` and on all earlier timesteps.

    Raises:
        ValueError: the prediction would have its target or a later timestep as an input, a token is repeated, or
            `read_at` is not the position of a token.
    """

    tokens: tuple[Token, ...]
    target: Field
    read_at: int
    squash: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.read_at < len(self.tokens):
            raise ValueError(f"read_at {self.read_at} is not one of the {len(self.tokens)} tokens (count from 0)")
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError("a token is repeated")
        for token in self.tokens:
            if token.lag < 0:
                raise ValueError(f"{token.field}: lag {token.lag} is in the future")
        if Token(self.target) in self.visible:
            raise ValueError(f"{self.target} is predicted from token {self.read_at}, but is itself one of its inputs")

    @property
    def visible(self) -> tuple[Token, ...]:
        """The tokens of a timestep on which its prediction depends."""
        return self.tokens[: self.read_at + 1]

    @property
    def max_lag(self) -> int:
        """The largest lag of the tokens, in timesteps."""
        return max(token.lag for token in self.tokens)

    @property
    def has_late_tokens(self) -> bool:
        """Whether some token of a timestep is known only after the policy has decided on its action."""
        return any(token.lag == 0 for token in self.tokens[self.read_at + 1 :])


# The tokens of the published methods: return-to-go, state, previous action, subgoal, previous subgoal.
R, S, A1 = Token(Field.RETURN_TO_GO), Token(Field.STATE), Token(Field.ACTION, lag=1)
G, G1 = Token(Field.SUBGOAL), Token(Field.SUBGOAL, lag=1)
