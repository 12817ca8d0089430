"""The results of a sweep as its folder tells them: no Ray, no MLflow, no simulator.

Grouping: a comparison is one data set under one protocol; its rows are cells (all seeds of one method and model); a
cell has trials. Scores of different protocols never meet in a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from dmray.errors import StorageError
from dmray.specs import DatasetSpec, Spec, SweepSpec, TrialSpec
from dmray.tasks import Task, task_of
from dmray.tracking import (
    AttemptFailed,
    AttemptStarted,
    EvaluationDone,
    LedgerRecord,
    Score,
    Spread,
    SweepFolder,
    TrialDone,
    best_score,
    distinct,
    last_score,
    method_label,
    read_ledger,
)

Status = Literal["finished", "diverged", "failed", "unfinished", "missing"]


class _Manifest(Spec):
    """What the driver noted at its last start."""

    sweep: SweepSpec
    trials: tuple[TrialSpec, ...]


@dataclass(frozen=True)
class Protocol:
    """What must be the same for two scores to be compared."""

    simulation: str
    decode: str
    episodes: int
    seed: int

    def __str__(self) -> str:
        return f"{self.simulation}, decode {self.decode}, {self.episodes} episodes, evaluation seed {self.seed}"


@dataclass(frozen=True)
class TrialResult:
    """One trial. Unfinished: begun and not ended; missing: not begun. Scores are in the order of their steps."""

    trial: TrialSpec
    status: Status
    steps: int
    scores: tuple[Score, ...]
    attempts: int
    error: str | None
    train_s: float | None
    evaluation_s: float
    provenance: dict[str, Any]

    @property
    def last(self) -> Score | None:
        """The score of the final weights; None unless the trial finished."""
        return last_score(self.scores) if self.status == "finished" else None

    @property
    def best(self) -> Score | None:
        """The highest score along the way; None unless the trial finished, so that it stands for the same trials."""
        return best_score(self.scores) if self.status == "finished" else None


@dataclass(frozen=True)
class CellResult:
    """All seeds of one method and model on one data set. `label` tells it from the other rows."""

    label: str
    method: str
    trials: tuple[TrialResult, ...]

    def count(self, status: Status) -> int:
        return sum(trial.status == status for trial in self.trials)

    def spread(self, which: Literal["last", "best"], value: Callable[[Score], float]) -> Spread | None:
        """Mean and deviation over the finished seeds."""
        scores: list[Score | None] = [getattr(trial, which) for trial in self.trials]
        return Spread.of([value(score) for score in scores if score is not None])


@dataclass(frozen=True)
class Comparison:
    """The methods on one data set under one protocol."""

    dataset: DatasetSpec
    task: Task
    protocol: Protocol
    target_returns: tuple[float, ...]
    cells: tuple[CellResult, ...]


@dataclass(frozen=True)
class SweepResults:
    """Everything that a report says."""

    sweep: SweepSpec
    trials: tuple[TrialResult, ...]
    comparisons: tuple[Comparison, ...]

    def count(self, status: Status) -> int:
        return sum(trial.status == status for trial in self.trials)


def collect(folder: SweepFolder) -> SweepResults:
    """Read the manifest and every ledger of the sweep.

    Raises:
        StorageError: there is no sweep in the folder, or a file of it is damaged.
    """
    manifest = _read_manifest(folder.manifest)
    trials = tuple(_trial_result(trial, folder) for trial in manifest.trials)
    return SweepResults(manifest.sweep, trials, tuple(_comparisons(trials)))


def _read_manifest(path: Path) -> _Manifest:
    try:
        return TypeAdapter(_Manifest).validate_json(path.read_bytes())
    except OSError as cause:
        raise StorageError(
            f"{path.parent}: no sweep here (no {path.name}); name the folder <storage>/<sweep>, for example "
            "runs/quickstart"
        ) from cause
    except ValidationError as invalid:
        first = invalid.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StorageError(f"{path}: not the manifest of a sweep of this version: {place}: {first['msg']}") from None


def _trial_result(trial: TrialSpec, folder: SweepFolder) -> TrialResult:
    records = distinct(read_ledger(folder.trial(trial.trial_id).ledger))
    evaluations = sorted(_of(EvaluationDone, records), key=lambda record: record.step)
    attempts, failures = _of(AttemptStarted, records), _of(AttemptFailed, records)
    ended = next(iter(_of(TrialDone, records)), None)
    return TrialResult(
        trial=trial,
        status=_status(records, ended),
        steps=ended.step if ended else max((getattr(record, "step", 0) for record in records), default=0),
        scores=tuple(Score.of(record) for record in evaluations),
        attempts=len(attempts),
        error=failures[-1].error if failures and ended is None else None,
        train_s=ended.train_s if ended else None,
        evaluation_s=sum(record.wall_s for record in evaluations),
        provenance=attempts[-1].provenance if attempts else {},
    )


def _status(records: list[LedgerRecord], ended: TrialDone | None) -> Status:
    if ended is not None:
        return ended.status
    if not records:
        return "missing"
    return "failed" if isinstance(records[-1], AttemptFailed) else "unfinished"


def _of(kind: Any, records: Iterable[LedgerRecord]) -> list[Any]:
    return [record for record in records if isinstance(record, kind)]


def _comparisons(trials: tuple[TrialResult, ...]) -> Iterable[Comparison]:
    order = {dataset: place for place, dataset in enumerate(dict.fromkeys(r.trial.dataset.name for r in trials))}
    ranked = sorted(trials, key=lambda result: (order[result.trial.dataset.name], str(_protocol(result.trial))))
    for _, group in groupby(ranked, key=lambda result: (result.trial.dataset.name, _protocol(result.trial))):
        members = list(group)
        first = members[0].trial
        task = task_of(first.dataset)
        targets = first.evaluation.target_returns or task.target_returns
        yield Comparison(first.dataset, task, _protocol(first), tuple(targets), _cells(members))


def _protocol(trial: TrialSpec) -> Protocol:
    evaluation = trial.evaluation
    return Protocol(task_of(trial.dataset).protocol, evaluation.decode, evaluation.episodes, evaluation.seed)


def _cells(trials: list[TrialResult]) -> tuple[CellResult, ...]:
    by_cell: dict[str, list[TrialResult]] = {}
    for result in trials:
        by_cell.setdefault(result.trial.cell_id, []).append(result)
    settings = {cell_id: _setting(members[0].trial) for cell_id, members in by_cell.items()}
    differing = [key for key in next(iter(settings.values())) if len({s[key] for s in settings.values()}) > 1]
    return tuple(
        CellResult(_label(members[0].trial, settings[cell_id], differing), members[0].trial.method, tuple(members))
        for cell_id, members in by_cell.items()
    )


def _setting(trial: TrialSpec) -> dict[str, Any]:
    """What may tell two cells of one method apart."""
    return {**trial.model.model_dump(), **trial.training.model_dump(), **trial.evaluation.model_dump()}


def _label(trial: TrialSpec, setting: dict[str, Any], differing: list[str]) -> str:
    details = ", ".join(f"{key} {setting[key]}" for key in differing)
    return f"{method_label(trial.method)} ({details})" if details else method_label(trial.method)
