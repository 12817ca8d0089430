"""The records of a trial's ledger in short, and a sweep's folder that has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmray.planning.manifest import write_manifest
from dmray.planning.plan import Plan
from dmray.records import (
    AttemptFailed,
    AttemptStarted,
    EvaluationDone,
    Ledger,
    LedgerRecord,
    RungDecision,
    SweepFolder,
    TrainProgress,
    TrialDone,
)
from tests.mlflow_mirror.examples import of_trial
from tests.sweeps import tiny_plan

OUT = RungDecision(
    time_s=1.0,
    step=20,
    score=3.0,
    num_peers=3,
    num_better=2,
    cutoff=5.0,
    within="method",
    reduction_factor=2,
    action="stop",
)


def started(step: int = 0, time_s: float = 0.0) -> AttemptStarted:
    return AttemptStarted(time_s=time_s, attempt=1, from_step=step, trial_id="x", spec={}, provenance={})


def trained(step: int, time_s: float = 0.0) -> TrainProgress:
    return TrainProgress(
        time_s=time_s, step=step, loss=0.5, stage_losses={}, grad_norm=1.0, learning_rate=1e-3, steps_per_s=10.0
    )


def evaluated(step: int, time_s: float = 0.0) -> EvaluationDone:
    values = dict.fromkeys(("return_mean", "return_std", "normalized_mean", "normalized_std", "length_mean"), 1.0)
    target: dict[str, Any] = {"target_return": None, "returns": [1.0], "lengths": [1], **values}
    return EvaluationDone(time_s=time_s, step=step, decode="window", seed=0, targets=[target], wall_s=1.0)


def scored(step: int, score: float, quick: bool = False) -> EvaluationDone:
    """An evaluation with this normalized score."""
    record = evaluated(step)
    target = record.targets[0].model_copy(update={"normalized_mean": score})
    return record.model_copy(update={"targets": [target], "quick": quick})


def again(number: int, step: int) -> AttemptStarted:
    """A further attempt, on a machine called far."""
    return started(step).model_copy(update={"attempt": number, "provenance": {"hostname": "far", "device": "cuda"}})


def failed(step: int) -> AttemptFailed:
    return AttemptFailed(time_s=0.0, attempt=1, step=step, error="OSError: disk [full]", traceback="")


def done(step: int, time_s: float = 0.0) -> TrialDone:
    return TrialDone(time_s=time_s, status="finished", step=step, best_step=None, train_s=1.0)


def begun(storage: Path, *ledgers: list[LedgerRecord]) -> tuple[Plan, SweepFolder]:
    """A sweep's folder whose trials have these records."""
    plan, folder = tiny_plan(storage), SweepFolder(storage, "tiny")
    write_manifest(plan, folder)
    for trial, records in zip(plan.trials, ledgers, strict=False):
        for record in records:
            Ledger(folder.trial(trial.trial_id).ledger).append(of_trial(record, trial))
    return plan, folder
