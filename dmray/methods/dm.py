"""Decision Mamba (arXiv 2405.07943), without and with the return-to-go token."""

from dmray.fields import Field
from dmray.methods.layout import A1, Layout, R, S
from dmray.methods.method import Method
from dmray.models.backbones import MAMBA

DM = Method(
    name="dm",
    label="DM",
    summary="Decision Mamba: state and previous action on a Mamba backbone, no return-to-go.",
    source="arXiv 2405.07943",
    backbone=MAMBA,
    stages=(Layout((S, A1), Field.ACTION, read_at=0),),
    colour="#D55E00",
    marker="s",
    baselines=("dt",),
)

DM_WITH_RETURNS = Method(
    name="dm+r",
    label="DM+R",
    summary="Decision Mamba with the return-to-go token.",
    source="arXiv 2405.07943",
    backbone=MAMBA,
    stages=(Layout((R, S, A1), Field.ACTION, read_at=1),),
    colour="#E69F00",
    marker="^",
    baselines=("dt",),
)
