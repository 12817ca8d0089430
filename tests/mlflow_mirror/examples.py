"""A sweep and ledgers with known content, for the tests of MLflow's mirror and of reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmray.files import write_json
from dmray.records import (
    AttemptFailed,
    AttemptStarted,
    EvaluationDone,
    Ledger,
    LedgerRecord,
    RungDecision,
    SweepFolder,
    TargetResult,
    TrainProgress,
    TrialDone,
    TrialStopped,
)
from dmray.specs import IDENTITY_VERSION, SweepSpec, TrainingSpec, TrialSpec

T0 = 1_700_000_000.0  # seconds since the epoch; a record at step s is s seconds later
RAW_PER_POINT = 10.0  # raw return per normalized point, in these examples


def example_sweep(**changes: Any) -> SweepSpec:
    content: dict[str, Any] = {
        "name": "example",
        "datasets": ["hopper-medium-v2"],
        "grid": [{"methods": ["dm", "dt"]}],
        "seeds": [0, 1],
        "training": {"steps": 40},
        "evaluation": {"episodes": 2, "every_steps": 20, "target_returns": [3600.0, 1800.0]},
        "tracking": {"mlflow_uri": "off"},
    }
    return SweepSpec.model_validate(content | changes)


def trials_of(sweep: SweepSpec) -> tuple[TrialSpec, ...]:
    training = TrainingSpec.model_validate(sweep.training.written)
    return tuple(
        TrialSpec(
            dataset=dataset, method=method, model=model, seed=seed, training=training, evaluation=sweep.evaluation
        )
        for dataset in sweep.datasets
        for seed in sweep.seeds
        for block in sweep.grid
        for model in block.models
        for method in block.methods
    )


def write_manifest(folder: SweepFolder, sweep: SweepSpec) -> None:
    trials = [trial.model_dump(mode="json") for trial in trials_of(sweep)]
    manifest = {"sweep": sweep.model_dump(mode="json"), "trials": trials, "identity_version": IDENTITY_VERSION}
    write_json(folder.manifest, manifest)


def started(attempt: int = 1, from_step: int = 0) -> AttemptStarted:
    made = {
        "git": {"commit": "c0ffee" * 6, "dirty": False},
        "versions": {"python": "3.11.9", "torch": "2.6.0", "mamba-ssm": None},
        "hardware": {"cpu": "A CPU", "cores": 4, "gpu": None},
        "hostname": "node-1",
        "dataset_fingerprint": "f00d",
    }
    return AttemptStarted(
        time_s=T0 + from_step, attempt=attempt, from_step=from_step, trial_id="t", spec={}, provenance=made
    )


def of_trial(record: LedgerRecord, trial: TrialSpec) -> LedgerRecord:
    """The record as that trial's ledger has it."""
    if isinstance(record, AttemptStarted):
        return record.model_copy(update={"trial_id": trial.trial_id})
    return record


def trained(step: int, loss: float = 0.5) -> TrainProgress:
    return TrainProgress(
        time_s=T0 + step,
        step=step,
        loss=loss,
        stage_losses={"action": loss},
        grad_norm=1.0,
        learning_rate=1e-4,
        steps_per_s=10.0,
    )


def evaluated(step: int, *normalized: float, targets: Sequence[float | None] = (3600.0, 1800.0)) -> EvaluationDone:
    """One normalized mean per target; raw returns are `RAW_PER_POINT` times it."""
    results = [
        TargetResult(
            target_return=target,
            returns=[RAW_PER_POINT * (value - 1), RAW_PER_POINT * (value + 1)],
            lengths=[100, 200],
            return_mean=RAW_PER_POINT * value,
            return_std=RAW_PER_POINT,
            normalized_mean=value,
            normalized_std=1.0,
            length_mean=150.0,
        )
        for target, value in zip(targets, normalized, strict=False)
    ]
    return EvaluationDone(time_s=T0 + step + 0.5, step=step, decode="window", seed=0, targets=results, wall_s=2.0)


def failed(step: int, attempt: int = 1) -> AttemptFailed:
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\nOSError: disk full\n'
    return AttemptFailed(time_s=T0 + step, attempt=attempt, step=step, error="OSError: disk full", traceback=trace)


def decided(step: int, score: float, *peers: float) -> RungDecision:
    """The decision of a rule by which the best half continues."""
    places = (len(peers) + 1) // 2
    better = sum(peer > score for peer in peers)
    return RungDecision(
        time_s=T0 + step + 0.6,
        step=step,
        score=score,
        num_peers=len(peers),
        num_better=better,
        cutoff=sorted((score, *peers))[-places] if places else None,
        within="dataset",
        reduction_factor=2,
        action="stop" if places and better >= places else "continue",
    )


def stopped_trial(score: float, *peers: float) -> list[LedgerRecord]:
    """A trial of 40 steps that was stopped after 20."""
    decision = decided(20, score, *peers)
    assert decision.action == "stop"
    end = TrialStopped(time_s=T0 + 21, attempt=1, step=20, decision=decision)
    return [started(), trained(20), evaluated(20, score, score - 5), decision, end]


def done(step: int = 40, status: Any = "finished", best_step: int | None = 40) -> TrialDone:
    return TrialDone(time_s=T0 + step + 1, status=status, step=step, best_step=best_step, train_s=3.0)


def whole_trial(*scores: float) -> list[LedgerRecord]:
    """A finished trial of 40 steps that scored `scores` at steps 20, 40, ..."""
    records: list[LedgerRecord] = [started()]
    for index, score in enumerate(scores):
        step = 20 * (index + 1)
        records += [trained(step, 1.0 / step), evaluated(step, score, score - 5)]
    return [*records, done(20 * len(scores))]


def write_ledger(folder: SweepFolder, trial: TrialSpec, records: Sequence[LedgerRecord]) -> Path:
    """Append `records` to the trial's ledger, with the done marker where the trial ends."""
    files = folder.trial(trial.trial_id)
    ledger = Ledger(files.ledger)
    for record in records:
        ledger.append(of_trial(record, trial))
        if isinstance(record, TrialDone):
            write_json(files.done, record.model_dump(mode="json"))
    return files.ledger
