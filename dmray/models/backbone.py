"""What a decoder needs of a causal network beside its forward pass: its last output alone, and to go on where it was.

Shapes: B rows, n tokens, D width, G groups. A state holds G groups of the same B rows, group by group: row g * B + b is
row b in group g. All take their tokens together, in one batch, and each group begins anew by itself.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class BackboneState(Protocol):
    """What a network remembers of a rollout's tokens; its caller's object."""

    def restart(self, group: int, after: int = 0) -> None:
        """Forget everything in this group, and the first `after` of the next call's tokens (of which there are more).

        What the call gives for those means nothing.
        """

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of every group only, in this order; (B',) int64."""


class Backbone(Protocol):
    """A causal network that can be run token by token: `advance` after `advance` gives what one forward pass gives."""

    def last(self, tokens: Tensor) -> Tensor:
        """What the forward pass gives for the last of the tokens (B, n, D), (B, D). In evaluation mode."""

    def begin(self, num_rows: int, num_groups: int = 1) -> BackboneState:
        """An empty state on the network's device. The weights stay as they are while it is in use."""

    def advance(self, tokens: Tensor, state: Any) -> Tensor:
        """The outputs for the next n `tokens`, (G * B, n, D) both; `state`, of this network, moves on. No gradients."""
