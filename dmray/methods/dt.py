"""Decision Transformer (arXiv 2106.01345), with the tokens of the code of arXiv 2405.07943."""

from dmray.fields import Field
from dmray.methods.layout import A1, Layout, R, S
from dmray.methods.method import Method
from dmray.methods.presets import DT_PRESETS
from dmray.models.backbones import TRANSFORMER

DT = Method(
    name="dt",
    label="DT",
    summary="Decision Transformer: return-to-go, state and previous action on a causal transformer.",
    source="arXiv 2106.01345; tokens of the code published with arXiv 2405.07943",
    backbone=TRANSFORMER,
    stages=(Layout((R, S, A1), Field.ACTION, read_at=1),),
    colour="#0072B2",
    marker="o",
    presets=DT_PRESETS,
)
