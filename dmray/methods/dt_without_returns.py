"""Decision Transformer without the return token. A control: it separates the effects of returns and backbone."""

from dmray.fields import Field
from dmray.methods.layout import A1, Layout, S
from dmray.methods.method import Method
from dmray.methods.presets import DT_PRESETS
from dmray.models.backbones import TRANSFORMER

DT_WITHOUT_RETURNS = Method(
    name="dt-r",
    label="DT-R",
    summary="DT without the return-to-go token. With DM+R, DM and DT it separates the effects of returns and backbone.",
    source="dmray (a control)",
    backbone=TRANSFORMER,
    stages=(Layout((S, A1), Field.ACTION, read_at=0),),
    colour="#004B78",
    marker="p",
    baselines=("dt",),
    presets=DT_PRESETS,
)
