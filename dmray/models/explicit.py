"""Networks as functions with explicit state, in operations that torch.export, torch.jit and ONNX can record.

`BackboneNetwork` keeps its state in an object and runs compiled loops; a file that acts without dmray can do neither.
The functions here compute the same numbers. Shapes: B rows, n tokens, D width, I inner width, N state size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmray.models.group_rows import GroupRows
from dmray.models.lstm import LSTMState, ResidualLSTM
from dmray.models.mamba import Mamba
from dmray.models.mamba_block import Block, MambaMixer
from dmray.models.mamba_state import MambaState, MixerState
from dmray.models.mlp import NoState, ResidualMLP

State = dict[str, Tensor]


class ExplicitNetwork(Protocol):
    """A backbone's network for exported files. The network is in evaluation mode."""

    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The name and the shape, without rows, of each float32 tensor of the state. All zeros: no token was seen."""

    def forward(self, tokens: Tensor) -> Tensor:
        """The outputs (B, n, D) for tokens (B, n, D) that begin with an empty state."""

    def advance(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The outputs (B, n, D) for the next tokens (B, n, D), and the state after them. `state` is not changed."""


class ExplicitMamba:
    """See `ExplicitNetwork`. The state has the convolution's last inputs and the hidden state of each layer."""

    def __init__(self, network: Mamba) -> None:
        self._network, self._blocks = network, [cast(Block, layer) for layer in network.layers]

    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for number, block in enumerate(self._blocks):
            empty = block.mixer.begin(1)
            shapes |= {f"taps{number}": tuple(empty.taps.shape[1:]), f"hidden{number}": tuple(empty.hidden.shape[1:])}
        return shapes

    def forward(self, tokens: Tensor) -> Tensor:
        residual = tokens
        for block in self._blocks:
            residual = residual + _mixed(block.mixer, block.norm(residual))
            residual = residual + block.mlp(block.norm2(residual))
        normed: Tensor = self._network.norm_f(residual)
        return normed

    def advance(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        numbers = range(len(self._blocks))
        layers = [MixerState(state[f"taps{number}"], state[f"hidden{number}"].clone()) for number in numbers]
        after = MambaState(layers, 1)
        outputs = self._network.advance(tokens, after)
        new: State = {}
        for number, layer in enumerate(after.layers):
            new |= {f"taps{number}": layer.taps.clone(), f"hidden{number}": layer.hidden}
        return outputs, new


class ExplicitLSTM:
    """See `ExplicitNetwork`. The state has the outputs and the cells of all layers, (layers, D) each."""

    def __init__(self, network: ResidualLSTM) -> None:
        self._network, self.forward = network, network.forward

    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        shape = (len(self._network.layers), len(self._network.final_norm.weight))
        return {"hidden": shape, "cell": shape}

    def advance(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        after = LSTMState(state["hidden"].clone(), state["cell"].clone(), GroupRows(1))
        outputs = self._network.advance(tokens, after)
        return outputs, {"hidden": after.hidden, "cell": after.cell}


class ExplicitMLP:
    """See `ExplicitNetwork`. There is no state."""

    def __init__(self, network: ResidualMLP) -> None:
        self._network, self.forward = network, network.forward

    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {}

    def advance(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        return self._network.advance(tokens, NoState()), {}


def _mixed(mixer: MambaMixer, hidden: Tensor) -> Tensor:
    """`MambaMixer.forward` without compiled loops: the scan takes log2(n) rounds over all tokens at once."""
    x, z = mixer.in_proj(hidden).chunk(2, dim=-1)
    x = F.silu(mixer.conv1d(x.transpose(1, 2))[:, :, : hidden.shape[1]].transpose(1, 2))
    dt, B, C = mixer.x_proj(x).split(mixer.splits, dim=-1)
    step = F.softplus(F.linear(dt, mixer.dt_proj.weight) + mixer.dt_proj.bias)
    added = (step * x)[..., None] * B[:, :, None]  # (B, n, I, N)
    states = added if mixer.memoryless else _scanned(torch.exp(step[..., None] * mixer.rates()), added)
    out: Tensor = mixer.out_proj(((states * C[:, :, None]).sum(-1) + mixer.D * x) * F.silu(z))
    return out


def _scanned(decay: Tensor, added: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + added_t for all t of (B, n, I, N), by Hillis and Steele's doubling; h_{-1} = 0."""
    length, distance = added.shape[1], 1
    while distance < length:
        before = (0, 0, 0, 0, distance, 0)
        added = added + decay * F.pad(added[:, :-distance], before)
        decay = decay * F.pad(decay[:, :-distance], before)
        distance *= 2
    return added


def explicit_mamba(network: nn.Module) -> ExplicitNetwork:
    """`dmray.models.Backbone.explicit` of Mamba."""
    return ExplicitMamba(cast(Mamba, network))


def explicit_lstm(network: nn.Module) -> ExplicitNetwork:
    """`dmray.models.Backbone.explicit` of the LSTM."""
    return ExplicitLSTM(cast(ResidualLSTM, network))


def explicit_mlp(network: nn.Module) -> ExplicitNetwork:
    """`dmray.models.Backbone.explicit` of the MLP."""
    return ExplicitMLP(cast(ResidualMLP, network))
