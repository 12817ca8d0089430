"""The registry of backbones: the config, the network, its number of parameters and its FLOPs. Does not import torch.

To add a backbone, add its config and an entry here and its network in a file of this package, or install a package with
an entry point `dmray.backbones` (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from dmray.models.configs import (
    INIT_STD,
    MAMBA_MLP_MULTIPLE,
    BackboneConfig,
    LSTMConfig,
    MambaConfig,
    MLPConfig,
    TransformerConfig,
)
from dmray.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from dmray.models.explicit import ExplicitNetwork

_SCAN_FLOPS = 9  # for each token, channel and state: exp(dt A), the update of the state, the product with C


class TokenInit(NamedTuple):
    """The initial weights around a backbone: of the embeddings, of the timestep table, and of the head.

    `linear_std`: the deviation of the normal weights of embeddings and head; None: PyTorch's uniform distribution.
    `zero_biases`: their biases are zero; otherwise PyTorch's. `timestep_std`: the deviation of the timestep table.
    """

    linear_std: float | None = None
    zero_biases: bool = False
    timestep_std: float = 1.0


def _pytorch_init(config: Any) -> TokenInit:
    return TokenInit()


@dataclass(frozen=True)
class Backbone:
    """The description of a causal network over embedded tokens (B, L, d_model).

    `build(config)`: returns a `torch.nn.Module` with the methods of `dmray.models.BackboneNetwork` (forward, `last`,
    `begin`, `advance`); `dmray.testing.backbone_contract` tests them. It should import torch only when it is called,
    so that planning is fast. `num_parameters(config)`: the number of trainable parameters. `flops(config, tokens)`: the
    FLOPs of the forward pass over a sequence of `tokens` tokens; a multiply-add is two.

    `timestep_embedding`: a learned embedding of the timestep is added to tokens. `token_init(config)`: the initial
    weights of embeddings and head. `uses_selective_scan`: the network runs the scan of `dmray.models.selective_scan`,
    so the name of the scan's implementation is recorded. `packable`: the network's training pass works under
    `torch.func.vmap` over its parameters, with dropout by `dmray.models.dropout.Dropout`, so that several trials can
    share a pack (`resources.trials_per_pack`).
    `explicit(network)`: the network as a function with explicit state, for `dmray export`; None: its forward pass is
    exported as it is, for decode mode `window` only.
    """

    name: str
    config: type[BackboneConfig]
    build: Callable[[Any], nn.Module]
    num_parameters: Callable[[Any], int]
    flops: Callable[[Any, int], float]
    timestep_embedding: bool = False
    token_init: Callable[[Any], TokenInit] = _pytorch_init
    uses_selective_scan: bool = False
    packable: bool = False
    explicit: Callable[[nn.Module], ExplicitNetwork] | None = None


def linear_parameters(size_in: int, size_out: int, bias: bool = True) -> int:
    """The number of parameters of a linear layer."""
    return size_in * size_out + (size_out if bias else 0)


def _build_transformer(config: TransformerConfig) -> nn.Module:
    from dmray.models.causal_transformer import CausalTransformer

    return CausalTransformer(config)


def _transformer_init(config: TransformerConfig) -> TokenInit:
    normal = config.embedding_init == "normal"
    return TokenInit(INIT_STD if normal else None, normal, config.timestep_init)


def _transformer_parameters(config: TransformerConfig) -> int:
    width = config.d_model
    attention = linear_parameters(width, 3 * width) + linear_parameters(width, width)
    mlp = linear_parameters(width, 4 * width) + linear_parameters(4 * width, width)
    return config.n_layer * (attention + mlp + 4 * width) + 2 * width


def _transformer_flops(config: TransformerConfig, tokens: int) -> float:
    attention = 4 * config.n_layer * config.d_model * tokens  # masked products are computed too
    return float(tokens * (2 * _transformer_parameters(config) + attention))


def _build_mamba(config: MambaConfig) -> nn.Module:
    from dmray.models.mamba import Mamba

    return Mamba(config)


def _mamba_init(config: MambaConfig) -> TokenInit:
    return TokenInit(zero_biases=True)


def _explicit_mamba(network: nn.Module) -> ExplicitNetwork:
    from dmray.models.explicit import explicit_mamba

    return explicit_mamba(network)


def _mamba_parameters(config: MambaConfig) -> int:
    width, inner, rank = config.d_model, config.expand * config.d_model, ceil(config.d_model / 16)
    hidden = ceil(width / MAMBA_MLP_MULTIPLE) * MAMBA_MLP_MULTIPLE
    rank = 0 if config.evolution == "constant-step" else rank
    rates = {"learned": config.d_state, "shared": 1, "constant-step": config.d_state}.get(config.evolution, 0)
    mixer = (
        linear_parameters(width, 2 * inner, bias=False) + inner * (config.d_conv + 1)
        + linear_parameters(inner, rank + 2 * config.d_state, bias=False) + linear_parameters(rank, inner)
        + inner * (rates + 1) + linear_parameters(inner, width, bias=False)
    )  # fmt: skip
    mlp = linear_parameters(width, 2 * hidden, bias=False) + linear_parameters(hidden, width, bias=False)
    return config.n_layer * (mixer + mlp + 2 * width) + width


def _mamba_flops(config: MambaConfig, tokens: int) -> float:
    per_state = _SCAN_FLOPS if config.evolution != "memoryless" else 0
    scan = per_state * config.n_layer * config.expand * config.d_model * config.d_state
    return float(tokens * (2 * _mamba_parameters(config) + scan))


def _build_lstm(config: LSTMConfig) -> nn.Module:
    from dmray.models.lstm import ResidualLSTM

    return ResidualLSTM(config)


def _explicit_lstm(network: nn.Module) -> ExplicitNetwork:
    from dmray.models.explicit import explicit_lstm

    return explicit_lstm(network)


def _lstm_parameters(config: LSTMConfig) -> int:
    width = config.d_model
    gates = 4 * (2 * width * width + 2 * width)  # torch's LSTM has two bias vectors
    return config.n_layer * (gates + 2 * width) + 2 * width


def _lstm_flops(config: LSTMConfig, tokens: int) -> float:
    return 2.0 * tokens * _lstm_parameters(config)


def _build_mlp(config: MLPConfig) -> nn.Module:
    from dmray.models.mlp import ResidualMLP

    return ResidualMLP(config)


def _explicit_mlp(network: nn.Module) -> ExplicitNetwork:
    from dmray.models.explicit import explicit_mlp

    return explicit_mlp(network)


def _mlp_parameters(config: MLPConfig) -> int:
    width = config.d_model
    block = linear_parameters(width, 4 * width) + linear_parameters(4 * width, width) + 2 * width
    return config.n_layer * block + 2 * width


def _mlp_flops(config: MLPConfig, tokens: int) -> float:
    return 2.0 * tokens * _mlp_parameters(config)


TRANSFORMER = Backbone(
    "transformer",
    TransformerConfig,
    _build_transformer,
    _transformer_parameters,
    _transformer_flops,
    timestep_embedding=True,
    token_init=_transformer_init,
    packable=True,
)
MAMBA = Backbone(
    "mamba",
    MambaConfig,
    _build_mamba,
    _mamba_parameters,
    _mamba_flops,
    token_init=_mamba_init,
    uses_selective_scan=True,
    packable=True,
    explicit=_explicit_mamba,
)
LSTM = Backbone("lstm", LSTMConfig, _build_lstm, _lstm_parameters, _lstm_flops, explicit=_explicit_lstm)
MLP = Backbone("mlp", MLPConfig, _build_mlp, _mlp_parameters, _mlp_flops, packable=True, explicit=_explicit_mlp)

BACKBONES: Registry[Backbone] = Registry(
    "backbone",
    "dmray.backbones",
    Backbone,
    {backbone.name: backbone for backbone in (TRANSFORMER, MAMBA, LSTM, MLP)},
)
