"""The state of Mamba in a rollout. Its size does not depend on the number of tokens.

Shapes: B rows (of all groups), I inner width, N state size. Channels are the last axis, so that loops over channels
read contiguous memory. In `mamba_ssm`'s `conv_state` and `ssm_state` they come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dmray.models.group_rows import Absent, GroupRows


@dataclass
class MixerState:
    """The state of one layer. `taps` (B, d_conv - 1, I): the convolution's last inputs; `hidden` (B, N, I): h."""

    taps: Tensor
    hidden: Tensor


class CompiledNetwork(Protocol):
    """A compiled implementation of the whole network's `advance` (`dmray.models.steps_numba`)."""

    def advance(self, tokens: Tensor, states: Sequence[MixerState], absent: Absent | None) -> Tensor: ...


class MambaState:
    """See `dmray.models.network.BackboneState`. If `compiled` is given, it computes the next tokens."""

    def __init__(self, layers: list[MixerState], num_groups: int, compiled: CompiledNetwork | None = None) -> None:
        self.layers, self.compiled, self.groups = layers, compiled, GroupRows(num_groups)

    def restart(self, group: int, after: int = 0) -> None:
        rows = self.groups.restart(group, after, len(self.layers[0].hidden))
        for layer in self.layers:
            layer.taps[rows] = 0.0
            layer.hidden[rows] = 0.0

    def keep(self, rows: Tensor) -> None:
        every = self.groups.all_rows(rows, len(self.layers[0].hidden))
        self.layers = [MixerState(layer.taps[every], layer.hidden[every]) for layer in self.layers]
