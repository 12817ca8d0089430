"""The config of each backbone: the fields that a sweep file may give under `models:`. Does not import torch.

The defaults are the paper's main setting (arXiv 2405.07943, section 5: width 128, 6 layers, context length 20).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmray.frozen import Spec

Evolution = Literal["learned", "frozen", "shared", "no-decay", "memoryless", "constant-step"]
INIT_STD = 0.02  # GPT-2's deviation of initial weights
MAMBA_MLP_MULTIPLE = 128  # Mamba's gated MLP is as wide as d_model rounded up to a multiple of this


class BackboneConfig(Spec):
    """The fields of all backbones.

    `context_length` (K): the number of timesteps of a training window, and of the window of decode mode `window`.
    """

    d_model: Annotated[int, Field(gt=0, le=100_000)] = 128
    n_layer: Annotated[int, Field(gt=0, le=1000)] = 6
    context_length: Annotated[int, Field(gt=0, le=100_000)] = 20


Activation = Literal["relu", "gelu"]


class TransformerConfig(BackboneConfig):
    """`dropout` is the probability for embeddings, attention weights and residual branches.

    `activation`: of the MLPs; "gelu" is the exact one. The other fields say how weights start (docs/methods.md):
    `timestep_init`: the deviation of the timestep table. `embedding_init`: of the linear embeddings and the head,
    PyTorch's uniform distribution ("pytorch"), or N(0, 0.02) with zero biases ("normal"). `attention_init`: of the
    projection into query, key and value, N(0, 0.02) ("normal") or Glorot's uniform distribution ("xavier").
    `residual_init`: of the projections back onto the residual path, N(0, 0.02) ("plain"), or with its deviation
    divided by sqrt(2 n_layer) ("scaled").
    """

    n_head: Annotated[int, Field(gt=0, le=100_000)] = 1
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    activation: Activation = "relu"
    timestep_init: Annotated[float, Field(ge=0.0, le=1000.0)] = 1.0
    embedding_init: Literal["pytorch", "normal"] = "pytorch"
    attention_init: Literal["normal", "xavier"] = "normal"
    residual_init: Literal["scaled", "plain"] = "scaled"

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TransformerConfig:
        if self.d_model % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide d_model {self.d_model}")
        return self


class MambaConfig(BackboneConfig):
    """`d_state`: state size per channel; `d_conv`: taps of the convolution; `expand` * `d_model`: channels.

    `evolution`: how a mixer's state evolves from token to token (`dmray.models.mamba_block`):
        learned        the decay rates A are trained, one for each channel and state (Mamba)
        frozen         A stays as initialised
        shared         A is trained, one rate for each channel: its states share it
        no-decay       A = 0: the state is a sum over all tokens
        memoryless     no state is carried from one token to the next; the convolution over d_conv tokens stays
        constant-step  the step size is trained but does not depend on the token
    """

    d_state: Annotated[int, Field(gt=0, le=10_000)] = 16
    d_conv: Annotated[int, Field(gt=0, le=1000)] = 4
    expand: Annotated[int, Field(gt=0, le=1000)] = 2
    evolution: Evolution = "learned"


class LSTMConfig(BackboneConfig):
    """`n_layer` layers of `d_model` units."""


class MLPConfig(BackboneConfig):
    """`n_layer` blocks with a hidden layer of 4 x `d_model`.

    `context_length` only sets the number of timesteps in a training batch, since the network has no memory.
    """

    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
