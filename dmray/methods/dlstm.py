"""DM's tokens with an LSTM backbone. A control: it shows whether DM's scores need Mamba or any recurrent network."""

from dmray.fields import Field
from dmray.methods.layout import A1, Layout, S
from dmray.methods.method import Method
from dmray.models.backbones import LSTM

DLSTM = Method(
    name="dlstm",
    label="DLSTM",
    summary="DM's tokens with stacked LSTM layers: another recurrent backbone.",
    source="dmray (a control); LSTM: Hochreiter and Schmidhuber 1997",
    backbone=LSTM,
    stages=(Layout((S, A1), Field.ACTION, read_at=0),),
    colour="#CC79A7",
    marker="P",
    baselines=("dt", "dm"),
)
