"""The interface of a backbone's network: the forward pass, and the methods with which decoders act step by step.

Shapes: B rows, n tokens, D width, G groups. A state has G groups of B rows each; row g * B + b is row b of group g. All
groups receive their tokens in the same call, as one batch. Each group can be restarted separately.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class BackboneState(Protocol):
    """The state of a network after the tokens that it has received. The caller owns it."""

    def restart(self, group: int, after: int = 0) -> None:
        """Clear the state of this group.

        The group skips the first `after` tokens of the next call, which must have more tokens than that. Their outputs
        for this group have no meaning.
        """

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows `rows` (B',) int64 of each group, in this order."""


class BackboneNetwork(Protocol):
    """A causal network that can also run token by token: repeated `advance` gives the outputs of one forward pass."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """The outputs (B, n, D) for tokens (B, n, D); output i depends on tokens 0..i only."""

    def last(self, tokens: Tensor) -> Tensor:
        """The forward pass's output (B, D) for the last of the tokens (B, n, D). Evaluation mode only."""

    def begin(self, num_rows: int, num_groups: int = 1) -> BackboneState:
        """Make an empty state on the network's device. The weights must not change while it is in use."""

    def advance(self, tokens: Tensor, state: Any) -> Tensor:
        """The outputs (G * B, n, D) for the next n tokens (G * B, n, D). Updates `state`. Without gradients."""


def has_hook(module: nn.Module) -> bool:
    """Whether this module has a hook. Code that computes the same without calling the module would not run it."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_inner_hooks(module: nn.Module) -> bool:
    """Whether a module inside of this one has a hook."""
    return any(has_hook(each) for each in module.modules() if each is not module)
