"""What one stage of a policy sees of a timestep, what it predicts, and from which token."""

from __future__ import annotations

from dataclasses import dataclass

from dmray.fields import Field, Token


@dataclass(frozen=True)
class Layout:
    """Tokens of each timestep in their order; `target` is predicted from the output at token `read_at` (from 0).

    `squash` puts a Tanh on the prediction. The backbone is causal, so the prediction sees the tokens up to and
    including `read_at` and all earlier timesteps.

    Raises:
        ValueError: the prediction would see its own answer or a later timestep, or `read_at` is no token.
    """

    tokens: tuple[Token, ...]
    target: Field
    read_at: int
    squash: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.read_at < len(self.tokens):
            raise ValueError(f"read_at {self.read_at} is not one of the {len(self.tokens)} tokens (count from 0)")
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError("a token is named twice")
        for token in self.tokens:
            if token.lag < 0:
                raise ValueError(f"{token.field}: lag {token.lag} is in the future")
        if Token(self.target) in self.visible:
            raise ValueError(f"{self.target} is predicted from token {self.read_at}, which sees the answer itself")

    @property
    def visible(self) -> tuple[Token, ...]:
        """The timestep's tokens that its own prediction sees."""
        return self.tokens[: self.read_at + 1]

    @property
    def max_lag(self) -> int:
        """How many timesteps back the tokens reach."""
        return max(token.lag for token in self.tokens)

    @property
    def waits(self) -> bool:
        """Whether a token of the timestep is known only after its decision."""
        return any(token.lag == 0 for token in self.tokens[self.read_at + 1 :])


# The tokens of the published methods: return-to-go, state, the action and the subgoal one timestep earlier, subgoal.
R, S, A1 = Token(Field.RETURN_TO_GO), Token(Field.STATE), Token(Field.ACTION, lag=1)
G, G1 = Token(Field.SUBGOAL), Token(Field.SUBGOAL, lag=1)
