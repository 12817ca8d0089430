"""What the MLflow runs of a sweep are called, and what they are found, filtered and grouped by.

    sweep                              dmray.level = sweep
      cell: all seeds of one setting   dmray.level = cell
        trial: one seed                dmray.level = trial

Parameters are what defines a trial and never change; they have the same keys for every method, so that a comparison
lines up. All that may change when a trial is resumed (machine, versions, attempt) is a tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmray.methods import METHODS
from dmray.records.records import AttemptFailed, AttemptStarted, TrialDone, TrialStopped
from dmray.specs import SweepSpec, TrialSpec, canonical_json
from dmray.tasks import task_of

LEVEL, KEY, SWEEP_ID, STATUS = "dmray.level", "dmray.key", "dmray.sweep_id", "dmray.status"
PARENT = "mlflow.parentRunId"


def method_label(method: str) -> str:
    """A method as papers write it: DT, DM+R, HDM."""
    return METHODS[method].label


def sweep_tags(sweep: SweepSpec, sweep_id: str, trials: int) -> dict[str, str]:
    datasets, seeds = ", ".join(dataset.name for dataset in sweep.datasets), ", ".join(map(str, sweep.seeds))
    methods = ", ".join(dict.fromkeys(method_label(method) for block in sweep.grid for method in block.methods))
    return {
        **_common("sweep", sweep.name, sweep, sweep_id),
        "mlflow.note.content": f"{trials} trials: {methods} on {datasets}, seeds {seeds}.",
    }


def seed_group_tags(trial: TrialSpec, sweep: SweepSpec, sweep_id: str, parent: str) -> dict[str, str]:
    """Tags of the cell that `trial` is a seed of."""
    return {
        **_common("cell", trial.seed_group_id, sweep, sweep_id),
        **_setting(trial),
        "dmray.cell": trial.seed_group_id,
        PARENT: parent,
    }


def trial_tags(trial: TrialSpec, sweep: SweepSpec, sweep_id: str, parent: str) -> dict[str, str]:
    return {
        **_common("trial", trial.trial_id, sweep, sweep_id),
        **_setting(trial),
        "dmray.trial_key": trial.trial_id,
        "dmray.cell": trial.seed_group_id,
        "seed": str(trial.seed),
        PARENT: parent,
    }


def seed_group_name(trial: TrialSpec) -> str:
    return f"{method_label(trial.method)}|{trial.dataset.name}"


def trial_name(trial: TrialSpec) -> str:
    return f"{seed_group_name(trial)}|s{trial.seed}"


def seed_group_params(trial: TrialSpec) -> dict[str, str]:
    """Everything that defines the trial but its seed, flat: evaluation settings are `eval_*`."""
    content = trial.model_dump(mode="json")
    task = task_of(trial.dataset)
    evaluation = {f"eval_{key}": value for key, value in content["evaluation"].items()}
    values = {
        "model": method_label(trial.method),
        "method": trial.method,
        "dataset": trial.dataset.name,
        "dataset_generate": content["dataset"]["generate"] or "no",
        "task": task.name,
        "family": task.family,
        "protocol": task.protocol,
        **content["model"],
        **content["training"],
        **evaluation,
    }
    return {key: value if isinstance(value, str) else canonical_json(value) for key, value in values.items()}


def trial_params(trial: TrialSpec) -> dict[str, str]:
    return {**seed_group_params(trial), "seed": str(trial.seed)}


def attempt_tags(record: AttemptStarted) -> dict[str, str]:
    """Who took the trial up, where, and with which versions."""
    made = record.provenance
    git, versions, hardware = made.get("git") or {}, made.get("versions") or {}, made.get("hardware") or {}
    values = {
        "mlflow.source.git.commit": git.get("commit"),
        "git.commit": git.get("commit"),
        "git.dirty": git.get("dirty"),
        "host": made.get("hostname"),
        "cpu.type": hardware.get("cpu"),
        "gpu.type": hardware.get("gpu"),
        "data.sha256": made.get("dataset_fingerprint"),
        "data.notes": "; ".join(made.get("dataset_notes") or []) or None,
        "mamba.backend": made.get("scan_backend"),
        "policy.parameters": (made.get("policy") or {}).get("parameters"),
        **{f"version.{name}": version for name, version in versions.items()},
        "dmray.attempt": record.attempt,
        "dmray.resumed_from_step": record.from_step,
        STATUS: "running",
    }
    return _texts(values)


def failure_tags(record: AttemptFailed) -> dict[str, str]:
    return _texts({STATUS: "failed", "dmray.last_error": record.error, "dmray.failed_at_step": record.step})


def stopped_tags(record: TrialStopped) -> dict[str, str]:
    return _texts({STATUS: "stopped", "dmray.stopped_at_step": record.step, "dmray.stopped_at_rung": record.rung.step})


def done_tags(record: TrialDone) -> dict[str, str]:
    return {STATUS: record.status}


def _common(level: str, key: str, sweep: SweepSpec, sweep_id: str) -> dict[str, str]:
    return {
        LEVEL: level,
        KEY: key,
        SWEEP_ID: sweep_id,
        "dmray.sweep": sweep.name,
        "mlflow.source.name": "dmray",
        "mlflow.source.type": "LOCAL",
    }


def _setting(trial: TrialSpec) -> dict[str, str]:
    task = task_of(trial.dataset)
    return {
        "model": method_label(trial.method),
        "method": trial.method,
        "dataset": trial.dataset.name,
        "task": task.name,
        "family": task.family,
        "protocol": task.protocol,
        "protocol.decode": trial.evaluation.decode,
        "protocol.env_id": task.env_id,
        "protocol.engine": task.engine,
    }


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items() if value is not None}
