"""Small sweeps that the tests of this folder share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from dmray.planning.plan import Plan, plan
from dmray.records import (
    AttemptFailed,
    AttemptPaused,
    AttemptStarted,
    RungDecision,
    SweepFolder,
    TrialStopped,
    distinct,
    read_ledger,
)
from dmray.specs import SweepSpec

# Changes of `tiny_sweep`: a search of three rounds with two settings each, then one trial of the report.
TINY_SEARCH: dict[str, Any] = {
    "grid": [{"methods": ["dm"], "models": [{"d_model": [8, 16], "n_layer": 1, "context_length": 4}]}],
    "training": {"steps": 10, "batch_size": 4, "learning_rate": {"log_uniform": [1e-4, 1e-1]}, "warmup_steps": 2},
    "evaluation": {"episodes": 2, "every_steps": 5, "cohort_size": 2},
    "faults": {"checkpoint_every_steps": 3},
    "search": {"settings": 6, "rounds": 3, "seeds": [100]},
}


def tiny_sweep(storage: Path | str, **changes: Any) -> SweepSpec:
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


def tiny_plan(storage: Path | str, **changes: Any) -> Plan:
    return plan(tiny_sweep(storage, **changes))


def sweep_file(storage: Path, **changes: object) -> Path:
    path = storage / "sweep.yaml"
    storage.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(json.loads(tiny_sweep(storage, **changes).model_dump_json())))
    return path


def science_of(folder: SweepFolder, trial_ids: tuple[str, ...]) -> list[object]:
    """The distinct records of what all trials measured, without clocks."""
    timed = {"time_s", "wall_s", "steps_per_s", "train_s", "system"}
    return [
        record.model_dump(exclude=timed)
        for trial_id in trial_ids
        for record in sorted(
            distinct(read_ledger(folder.trial(trial_id).ledger)), key=lambda r: (r.kind, getattr(r, "step", 0))
        )
        if not isinstance(record, AttemptStarted | AttemptFailed | AttemptPaused | RungDecision | TrialStopped)
    ]
