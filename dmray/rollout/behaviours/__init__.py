"""Policies that dmray brings to record data with.

Those of the robots are in `<task>.npz`, written by `tools/train_behaviours.py`: snapshots of one search for a linear
policy (augmented random search V2-t, Mania et al. 2018, arXiv 1803.07055), from its first policy to the one that is
used as expert. `snapshots.py` has the arrays, `recorders.py` what is recorded with them. `pushes.py` is the script of
an arm.
"""

from dmray.rollout.behaviours.pushes import PUSH_NOISE, WAYS, Arm, record_pushes
from dmray.rollout.behaviours.recorders import ACTION_NOISE, RECORDERS, LinearPolicies
from dmray.rollout.behaviours.snapshots import (
    MEDIUM_PROGRESS,
    Snapshots,
    linear_policies,
    load_snapshots,
    snapshot_file,
)

__all__ = [
    "ACTION_NOISE",
    "MEDIUM_PROGRESS",
    "PUSH_NOISE",
    "RECORDERS",
    "WAYS",
    "Arm",
    "LinearPolicies",
    "Snapshots",
    "linear_policies",
    "load_snapshots",
    "record_pushes",
    "snapshot_file",
]
