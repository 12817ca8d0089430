"""The Mamba backbone of Decision Mamba (arXiv 2405.07943): the blocks of `dmray.models.mamba_block`, one after another.

Deliberate difference from the authors' code: projections onto the residual path (two in each layer) are initialised
smaller by 1/sqrt(2 n_layer), as in their backbone. Their outer module then initialises them again, smaller by
1/sqrt(n_layer) only.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from dmray.models.configs import MambaConfig
from dmray.models.mamba_block import NORM_EPSILON, Block
from dmray.models.mamba_state import MambaState
from dmray.models.network import has_hook
from dmray.models.selective_scan import scan_backend


class Mamba(nn.Module):
    """Mamba blocks and a final RMSNorm over `(B, L, d_model)`; no position embedding, no dropout."""

    def __init__(self, spec: MambaConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.n_layer))
        self.norm_f = nn.RMSNorm(spec.d_model, eps=NORM_EPSILON)
        _shrink_residual_projections(self, spec.n_layer)

    def forward(self, tokens: Tensor) -> Tensor:
        residual = tokens
        for layer in self.layers:
            residual = layer(residual)
        return self.normed(residual)

    def last(self, tokens: Tensor) -> Tensor:
        """See `dmray.models.network.BackboneNetwork`."""
        residual = tokens
        for layer in self.layers[:-1]:
            residual = layer(residual)
        return self.normed(cast(Block, self.layers[-1]).last(residual))

    def begin(self, num_rows: int, num_groups: int = 1) -> MambaState:
        """See `dmray.models.network.BackboneNetwork`."""
        rows, weight = num_rows * num_groups, self.norm_f.weight
        if scan_backend(weight.device, weight.dtype) == "numba":
            from dmray.models.steps_numba import CompiledSteps

            steps = CompiledSteps([cast(Block, layer) for layer in self.layers], self.norm_f)
            return MambaState(steps.begin(rows), num_groups, steps)
        return MambaState([cast(Block, layer).mixer.begin(rows) for layer in self.layers], num_groups)

    def advance(self, tokens: Tensor, state: MambaState) -> Tensor:
        """See `dmray.models.network.BackboneNetwork`. The work for a token does not depend on the tokens before it."""
        residual, absent = tokens, state.groups.take_absent()
        if state.compiled is not None:
            return state.compiled.advance(tokens, state.layers, absent)
        for layer, mixer_state in zip(self.layers, state.layers, strict=True):
            residual = cast(Block, layer).advance(residual, mixer_state, absent)
        normed: Tensor = self.norm_f(residual)
        return normed

    def normed(self, residual: Tensor) -> Tensor:
        """The output for the last residual: the final norm."""
        if cast(Block, self.layers[-1]).is_compiled(residual) and not has_hook(self.norm_f):
            from dmray.models.block_numba import numba_rms_norm

            return numba_rms_norm(residual, self.norm_f.weight, NORM_EPSILON)
        normed: Tensor = self.norm_f(residual)
        return normed


def _shrink_residual_projections(model: nn.Module, n_layer: int) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                parameter.div_(math.sqrt(2 * n_layer))
