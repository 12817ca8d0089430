"""Hierarchical Decision Mamba (arXiv 2405.07943)."""

from dmray.fields import Field
from dmray.methods.layout import A1, G1, G, Layout, S
from dmray.methods.method import Method
from dmray.models.backbones import MAMBA

HDM = Method(
    name="hdm",
    label="HDM",
    summary="Hierarchical Decision Mamba: HDT's two levels on Mamba backbones.",
    source="arXiv 2405.07943",
    backbone=MAMBA,
    stages=(
        Layout((G1, S), Field.SUBGOAL, read_at=1),
        Layout((G, S, A1), Field.ACTION, read_at=1),
    ),
    colour="#009E73",
    marker="v",
    baselines=("dt", "hdt"),
)
