"""A method of one's own on a backbone of one's own: DM's tokens, averaged over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dmray.fields import Field as Quantity
from dmray.methods import Layout, Method
from dmray.methods.layout import A1, S
from dmray.models import Backbone, BackboneConfig

if TYPE_CHECKING:
    from torch import nn


class AverageConfig(BackboneConfig):
    """`decay`: how much of the average a token keeps when the next one comes."""

    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5


def _build(config: AverageConfig) -> nn.Module:
    from dmray_toy.network import MovingAverage  # loaded when a policy is built, not when a sweep is planned

    return MovingAverage(config)


def _num_parameters(config: AverageConfig) -> int:
    return config.n_layer * (config.d_model * config.d_model + config.d_model)


def _flops(config: AverageConfig, tokens: int) -> float:
    return 2.0 * tokens * _num_parameters(config)


AVERAGE = Backbone("toy-average", AverageConfig, _build, _num_parameters, _flops)

TOY_METHOD = Method(
    name="toy",
    label="Toy",
    summary="DM's tokens on a moving average.",
    source="dmray-toy",
    backbone=AVERAGE,
    stages=(Layout((S, A1), Quantity.ACTION, read_at=0),),
    colour="#7A3E9D",
    marker="*",
    baselines=("bc",),
)
