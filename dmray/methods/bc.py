"""Behaviour cloning by an MLP on the current state. A control: no memory, no return-to-go."""

from dmray.fields import Field
from dmray.methods.layout import Layout, S
from dmray.methods.method import Method
from dmray.models.backbones import MLP

BC = Method(
    name="bc",
    label="BC",
    summary="Behaviour cloning by an MLP on the current state: no memory, no return-to-go.",
    source="dmray (a control)",
    backbone=MLP,
    stages=(Layout((S,), Field.ACTION, read_at=0),),
    colour="#7F7F7F",
    marker="X",
)
