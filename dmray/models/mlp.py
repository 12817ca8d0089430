"""Residual MLP blocks that process each token separately: a backbone without memory.

Shapes: B rows, n tokens, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dmray.models.configs import MLPConfig
from dmray.models.dropout import Dropout


class ResidualMLP(nn.Module):
    """`hidden + MLP(norm(hidden))` per block and a final LayerNorm, over (B, n, D)."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = tokens
        for block in self.blocks:
            hidden = hidden + block(hidden)
        normed: Tensor = self.final_norm(hidden)
        return normed

    def last(self, tokens: Tensor) -> Tensor:
        """See `dmray.models.network.BackboneNetwork`."""
        output: Tensor = self(tokens[:, -1])
        return output

    def begin(self, num_rows: int, num_groups: int = 1) -> NoState:
        """See `dmray.models.network.BackboneNetwork`."""
        return NoState()

    def advance(self, tokens: Tensor, state: NoState) -> Tensor:
        """See `dmray.models.network.BackboneNetwork`."""
        output: Tensor = self(tokens)
        return output


class _Block(nn.Module):
    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.opening = nn.Linear(config.d_model, 4 * config.d_model)
        self.closing = nn.Linear(4 * config.d_model, config.d_model)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.closing(F.relu(self.opening(self.norm(hidden)))))
        return out


class NoState:
    """See `dmray.models.network.BackboneState`. It is empty, since the network has no memory."""

    def restart(self, group: int, after: int = 0) -> None:
        pass

    def keep(self, rows: Tensor) -> None:
        pass
