"""Small sweeps that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmray.execution import Plan, plan
from dmray.specs import SweepSpec


def tiny_sweep(storage: Path, **changes: Any) -> SweepSpec:
    """maze2d-open, DM and DT, 40 steps of a toy network: a second a trial."""
    content: dict[str, Any] = {
        "name": "tiny",
        "datasets": [
            {
                "name": "open-expert",
                "task": "maze2d-open",
                "generate": {"behaviour": "expert", "transitions": 1500, "seed": 0},
            }
        ],
        "grid": [{"methods": ["dm", "dt"], "models": [{"d_model": 16, "n_layer": 1, "context_length": 4}]}],
        "seeds": [0],
        "training": {"steps": 40, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
        "evaluation": {"episodes": 4, "every_steps": 20, "cohort_size": 2, "target_returns": [50.0]},
        "faults": {"checkpoint_every_steps": 10},
        "tracking": {"log_every_steps": 10, "mlflow_uri": "off"},
        "storage": str(storage),
    }
    return SweepSpec.model_validate(content | changes)


def tiny_plan(storage: Path, **changes: Any) -> Plan:
    return plan(tiny_sweep(storage, **changes))
