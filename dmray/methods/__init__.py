"""The registry of methods: tokens, targets and backbone of each, and its label and colour in reports.

To add a method, add a file here with a `Method` and a line to `METHODS`, or install a package with an entry point
`dmray.methods` (docs/extending.md). Nothing else in dmray lists methods.
"""

from dmray.methods.layout import Layout
from dmray.methods.method import ActionInput, Method, PolicyShape, Preset, SubgoalHead, SubgoalTarget
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

__all__ = ["METHODS", "ActionInput", "Layout", "Method", "PolicyShape", "Preset", "SubgoalHead", "SubgoalTarget"]
