"""Hierarchical Decision Transformer (arXiv 2209.10447), with the tokens of the code of arXiv 2405.07943."""

from dmray.fields import Field
from dmray.methods.layout import A1, G1, G, Layout, S
from dmray.methods.method import Method
from dmray.models.backbones import TRANSFORMER

HDT = Method(
    name="hdt",
    label="HDT",
    summary="Hierarchical DT: a high network predicts a subgoal, a low network the action that leads there.",
    source="arXiv 2209.10447",
    backbone=TRANSFORMER,
    stages=(
        Layout((S, G1), Field.SUBGOAL, read_at=1, squash=False),
        Layout((G, S, A1), Field.ACTION, read_at=1),
    ),
    colour="#56B4E9",
    marker="D",
)
