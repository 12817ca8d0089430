"""What Mamba remembers of a rollout: the same size however many tokens there were.

Shapes: B rows (of all groups), I inner width, N state size. Channels are last, so that loops run along memory;
`mamba_ssm`'s `conv_state` and `ssm_state` have them first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dmray.models.steps_numba import CompiledSteps

Absent = tuple[slice, slice]  # rows and tokens (B, n) of a call that do not exist; the rows' states are zero


@dataclass
class MixerState:
    """`taps` (B, d_conv - 1, I): the convolution's latest inputs; `hidden` (B, N, I): the scan's h."""

    taps: Tensor
    hidden: Tensor


class MambaState:
    """See `dmray.models.backbone.BackboneState`. With `compiled`, that moves the layers on."""

    def __init__(self, layers: list[MixerState], num_groups: int, compiled: CompiledSteps | None = None) -> None:
        self.layers, self.compiled = layers, compiled
        self._num_groups = num_groups
        self._absent: Absent | None = None

    @property
    def _group_size(self) -> int:
        return len(self.layers[0].hidden) // self._num_groups

    def restart(self, group: int, after: int = 0) -> None:
        assert self._absent is None, "one group begins anew at a time"
        rows = slice(group * self._group_size, (group + 1) * self._group_size)
        for layer in self.layers:
            layer.taps[rows] = 0.0
            layer.hidden[rows] = 0.0
        self._absent = (rows, slice(after)) if after else None

    def keep(self, rows: Tensor) -> None:
        firsts = torch.arange(self._num_groups, device=rows.device) * self._group_size
        all_rows = (firsts[:, None] + rows).flatten()
        self.layers = [MixerState(layer.taps[all_rows], layer.hidden[all_rows]) for layer in self.layers]

    def take_absent(self) -> Absent | None:
        """What does not exist in the call that begins; asked once a call."""
        absent, self._absent = self._absent, None
        return absent
