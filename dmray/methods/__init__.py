"""Methods: what a policy sees of each timestep, what it predicts, on which backbone, and how a report shows it.

To add one: a file here with a `Method` and a line in `METHODS`, or a package with an entry point `dmray.methods`
(docs/extending.md). Nothing else in dmray lists methods.
"""

from dmray.methods.layout import Layout
from dmray.methods.method import ActionInput, Method, PolicyShape
from dmray.registry import Registry

METHODS: Registry[Method] = Registry(
    "method",
    "dmray.methods",
    Method,
    {
        "dm": "dmray.methods.dm:DM",
        "dm+r": "dmray.methods.dm:DM_WITH_RETURNS",
        "hdm": "dmray.methods.hdm:HDM",
        "dt": "dmray.methods.dt:DT",
        "hdt": "dmray.methods.hdt:HDT",
        "dt-r": "dmray.methods.dt_without_returns:DT_WITHOUT_RETURNS",
        "bc": "dmray.methods.bc:BC",
        "dlstm": "dmray.methods.dlstm:DLSTM",
    },
)

__all__ = ["METHODS", "ActionInput", "Layout", "Method", "PolicyShape"]
