"""A control: Decision Transformer without the return token, the transformer half of returns x backbone."""

from dmray.fields import Field
from dmray.methods.layout import A1, Layout, S
from dmray.methods.method import Method
from dmray.models.backbones import TRANSFORMER

DT_WITHOUT_RETURNS = Method(
    name="dt-r",
    label="DT-R",
    summary="DT without the return-to-go token: with DM+R, DM and DT it separates returns from backbone.",
    source="dmray (a control)",
    backbone=TRANSFORMER,
    stages=(Layout((S, A1), Field.ACTION, read_at=0),),
    colour="#004B78",
    marker="p",
    baselines=("dt",),
)
