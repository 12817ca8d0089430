"""What a decoder needs of a causal network beside its forward pass: to go on where it was.

Shapes: B rows, n tokens, D width.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class BackboneState(Protocol):
    """What a network remembers of a rollout's tokens, for B rows that are all equally far; its caller's object."""

    def restart(self) -> None:
        """Forget everything: the next token is the first."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, in this order; (B',) int64."""


class Backbone(Protocol):
    """A causal network that can be run token by token: `advance` after `advance` gives what one forward pass gives."""

    def begin(self, num_rows: int) -> BackboneState:
        """An empty state on the network's device."""

    def advance(self, tokens: Tensor, state: Any) -> Tensor:
        """The outputs (B, n, D) for the next n `tokens` (B, n, D); `state`, of this network, moves on. No gradients."""
