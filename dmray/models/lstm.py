"""Stacked LSTM layers (Hochreiter and Schmidhuber 1997) over tokens, each with a LayerNorm before and a residual path.

Shapes: B rows (of all groups), n tokens, D width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dmray.models.configs import LSTMConfig
from dmray.models.group_rows import GroupRows


class ResidualLSTM(nn.Module):
    """`hidden + LSTM(norm(hidden))` per layer and a final LayerNorm, over (B, n, D)."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        width, layers = config.d_model, range(config.n_layer)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in layers)
        self.layers = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in layers)
        self.final_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self._run(tokens, None)

    def last(self, tokens: Tensor) -> Tensor:
        """See `dmray.models.network.BackboneNetwork`."""
        outputs: Tensor = self(tokens)
        return outputs[:, -1]

    def begin(self, num_rows: int, num_groups: int = 1) -> LSTMState:
        """See `dmray.models.network.BackboneNetwork`."""
        shape = (num_rows * num_groups, len(self.layers), len(self.final_norm.weight))
        zeros = self.final_norm.weight.new_zeros
        return LSTMState(zeros(shape), zeros(shape), GroupRows(num_groups))

    def advance(self, tokens: Tensor, state: LSTMState) -> Tensor:
        """See `dmray.models.network.BackboneNetwork`."""
        absent = state.groups.take_absent()
        if absent is None:
            return self._run(tokens, state)
        # The restarted group skips its absent tokens: run those for all groups, clear its state, then run the rest.
        rows, skipped = absent
        before = self._run(tokens[:, skipped], state)
        state.clear(rows)
        return torch.cat([before, self._run(tokens[:, skipped.stop :], state)], dim=1)

    def _run(self, tokens: Tensor, state: LSTMState | None) -> Tensor:
        hidden = tokens
        for number, (norm, layer) in enumerate(zip(self.norms, self.layers, strict=True)):
            start = None if state is None else (state.hidden[:, number][None], state.cell[:, number][None])
            output, (last_hidden, last_cell) = cast(nn.LSTM, layer)(norm(hidden), _contiguous(start))
            if state is not None:
                state.hidden[:, number], state.cell[:, number] = last_hidden[0], last_cell[0]
            hidden = hidden + output
        normed: Tensor = self.final_norm(hidden)
        return normed


class LSTMState:
    """See `dmray.models.network.BackboneState`. `hidden` and `cell` are (B, layers, D)."""

    def __init__(self, hidden: Tensor, cell: Tensor, groups: GroupRows) -> None:
        self.hidden, self.cell, self.groups = hidden, cell, groups

    def restart(self, group: int, after: int = 0) -> None:
        self.clear(self.groups.restart(group, after, len(self.hidden)))

    def keep(self, rows: Tensor) -> None:
        every = self.groups.all_rows(rows, len(self.hidden))
        self.hidden, self.cell = self.hidden[every], self.cell[every]

    def clear(self, rows: slice) -> None:
        """Clear the state of these rows."""
        self.hidden[rows], self.cell[rows] = 0.0, 0.0


def _contiguous(start: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    return None if start is None else (start[0].contiguous(), start[1].contiguous())
