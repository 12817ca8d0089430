"""The network of the backbone `toy-average`. Shapes: B rows, n tokens, D width, G groups of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmray.models.group_rows import GroupRows

if TYPE_CHECKING:
    from dmray_toy.methods import AverageConfig


class MovingAverage(nn.Module):
    """Each layer adds a nonlinear function of the exponential moving average of its input over the tokens so far."""

    def __init__(self, config: AverageConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(config.d_model, config.d_model) for _ in range(config.n_layer))
        self.decay = config.decay

    def forward(self, tokens: Tensor) -> Tensor:
        return self._run(tokens, tokens.new_zeros(len(tokens), len(self.layers), tokens.shape[2]))[0]

    def last(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self(tokens)
        return outputs[:, -1]

    def begin(self, num_rows: int, num_groups: int = 1) -> AverageState:
        weight = next(self.parameters())
        return AverageState(
            weight.new_zeros(num_rows * num_groups, len(self.layers), weight.shape[1]), GroupRows(num_groups)
        )

    def advance(self, tokens: Tensor, state: AverageState) -> Tensor:
        absent, parts = state.groups.take_absent(), []
        if absent is not None:  # the restarted group has no such tokens: empty its averages after them
            rows, skipped = absent
            output, state.averages = self._run(tokens[:, skipped], state.averages)
            parts, tokens = [output], tokens[:, skipped.stop :]
            state.averages[rows] = 0.0
        output, state.averages = self._run(tokens, state.averages)
        return torch.cat([*parts, output], dim=1)

    def _run(self, tokens: Tensor, averages: Tensor) -> tuple[Tensor, Tensor]:
        outputs, current = [], list(averages.unbind(1))
        for token in tokens.unbind(1):
            hidden = token
            for number, layer in enumerate(self.layers):
                current[number] = self.decay * current[number] + (1 - self.decay) * hidden
                hidden = hidden + torch.tanh(layer(current[number]))
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), torch.stack(current, dim=1)


class AverageState:
    """`averages` (G * B, layers, D)."""

    def __init__(self, averages: Tensor, groups: GroupRows) -> None:
        self.averages, self.groups = averages, groups

    def restart(self, group: int, after: int = 0) -> None:
        self.averages[self.groups.restart(group, after, len(self.averages))] = 0.0

    def keep(self, rows: Tensor) -> None:
        self.averages = self.averages[self.groups.all_rows(rows, len(self.averages))]
