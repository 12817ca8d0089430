"""What a backbone's network offers beside its forward pass, so that decoders can act step by step.

Shapes: B rows, n tokens, D width, G groups. A state holds G groups of the same B rows, group by group: row g * B + b is
row b in group g. All groups take their tokens together, in one batch; each group can be restarted by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class BackboneState(Protocol):
    """What a network remembers of the tokens of a rollout. The caller owns it."""

    def restart(self, group: int, after: int = 0) -> None:
        """Empty the state of this group; the next call starts it anew.

        The first `after` of the next call's tokens (which has more than that) do not enter the group's state. Their
        outputs for this group have no meaning.
        """

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of every group, in this order; (B',) int64."""


class BackboneNetwork(Protocol):
    """A causal network that can run token by token: repeated `advance` gives what one forward pass gives."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """The outputs (B, n, D) for tokens (B, n, D); output i depends on tokens 0..i only."""

    def last(self, tokens: Tensor) -> Tensor:
        """The forward pass's output for the last of the tokens (B, n, D), (B, D). In evaluation mode."""

    def begin(self, num_rows: int, num_groups: int = 1) -> BackboneState:
        """An empty state on the network's device. The weights must not change while it is in use."""

    def advance(self, tokens: Tensor, state: Any) -> Tensor:
        """The outputs for the next n `tokens`, (G * B, n, D) both. Updates `state` (of `begin`). No gradients."""
