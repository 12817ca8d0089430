"""The results of a sweep as its folder tells them: no Ray, no MLflow, no simulator.

Grouping: a comparison is one data set under one protocol; its rows are cells (all seeds of one method and model); a
cell has trials. Scores of different protocols never meet in a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from dmray.mlflow_mirror.labels import method_label
from dmray.planning.manifest import read_manifest
from dmray.records import LedgerSummary, RungDecision, Score, ScoreSeries, Spread, SweepFolder, summarize_ledgers
from dmray.specs import DatasetSpec, EarlyStoppingSpec, TrialSpec
from dmray.tasks import Task, task_of

Status = Literal["finished", "diverged", "stopped", "failed", "unfinished", "missing"]
UNSCORED: tuple[Status, ...] = ("diverged", "stopped", "failed", "unfinished", "missing")


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
    """One trial. Unfinished: begun and not ended; missing: not begun. Scores are in the order of their steps.

    `rungs` are early stopping's verdicts on it, `stopped` the one that ended it.
    """

    trial: TrialSpec
    status: Status
    steps: int
    scores: ScoreSeries
    attempts: int
    error: str | None
    train_s: float | None
    evaluation_s: float
    provenance: dict[str, Any]
    rungs: tuple[RungDecision, ...] = ()
    stopped: RungDecision | None = None

    @property
    def last(self) -> Score | None:
        """The score of the final weights; None unless the trial finished."""
        return self.scores.last if self.status == "finished" else None

    @property
    def best(self) -> Score | None:
        """The highest score along the way; None unless the trial finished, so that it stands for the same trials."""
        return self.scores.best if self.status == "finished" else None

    @property
    def last_ten(self) -> float | None:
        """The mean normalized score of the last ten evaluations; None unless the trial finished."""
        return self.scores.mean_of_last(10) if self.status == "finished" else None


@dataclass(frozen=True)
class SeedGroup:
    """All seeds of one method and model on one data set. `label` tells it from the other rows."""

    label: str
    method: str
    trials: tuple[TrialResult, ...]

    def count(self, status: Status) -> int:
        return sum(trial.status == status for trial in self.trials)

    @property
    def stopped(self) -> bool:
        """Whether seeds were stopped early."""
        return self.count("stopped") > 0

    @property
    def scored(self) -> tuple[TrialResult, ...]:
        """The trials whose scores stand for the cell: those with a last score.

        None where seeds were stopped early, or compete and may yet be: those that are through are the better ones, and
        their mean would be no result.
        """
        competing = any(trial.rungs for trial in self.trials)
        if self.stopped or (competing and self.count("unfinished") + self.count("missing")):
            return ()
        return tuple(trial for trial in self.trials if trial.last is not None)

    def spread(self, which: Literal["last", "best"], value: Callable[[Score], float]) -> Spread | None:
        """Mean and deviation over the seeds that stand for the cell."""
        scores: list[Score | None] = [getattr(trial, which) for trial in self.scored]
        return Spread.of([value(score) for score in scores if score is not None])


@dataclass(frozen=True)
class Comparison:
    """The methods on one data set under one protocol."""

    dataset: DatasetSpec
    task: Task
    protocol: Protocol
    target_returns: tuple[float, ...]
    seed_groups: tuple[SeedGroup, ...]


@dataclass(frozen=True)
class SweepResults:
    """Everything that a report says; `name` is the sweep's, or those of several.

    `early_stopping`: the rules of those sweeps that have one, by name.
    """

    name: str
    trials: tuple[TrialResult, ...]
    comparisons: tuple[Comparison, ...]
    early_stopping: dict[str, EarlyStoppingSpec] = field(default_factory=dict)

    def count(self, status: Status) -> int:
        return sum(trial.status == status for trial in self.trials)


def collect(*folders: SweepFolder, protocol: str | None = None) -> SweepResults:
    """Read the manifests and every ledger; `protocol` (as "d4rl-mujoco") leaves the others out.

    A trial that several sweeps have counts once: where it got furthest.

    Raises:
        StorageError: there is no sweep in a folder, or a file of it is damaged.
    """
    manifests = [(read_manifest(folder), folder) for folder in folders]
    wanted = [
        (trial, folder.trial(trial.trial_id).ledger)
        for manifest, folder in manifests
        for trial in manifest.trials
        if protocol in (None, task_of(trial.dataset).protocol)
    ]
    summaries = summarize_ledgers([ledger for _, ledger in wanted])
    furthest: dict[str, TrialResult] = {}
    for (trial, _), summary in zip(wanted, summaries, strict=True):
        result = _trial_result(trial, summary)
        held = furthest.get(trial.trial_id)
        if held is None or _progress(result) > _progress(held):
            furthest[trial.trial_id] = result
    trials = tuple(furthest.values())
    sweeps = [manifest.sweep for manifest, _ in manifests]
    rules = {sweep.name: sweep.early_stopping for sweep in sweeps if sweep.early_stopping is not None}
    name = " + ".join(sweep.name for sweep in sweeps)
    return SweepResults(name, trials, tuple(_comparisons(trials)), rules)


def _progress(result: TrialResult) -> tuple[bool, int]:
    return result.status in ("finished", "diverged"), result.steps


def _trial_result(trial: TrialSpec, read: LedgerSummary) -> TrialResult:
    return TrialResult(
        trial=trial,
        status=_status(read),
        steps=read.ended.step if read.ended else read.steps,
        scores=read.scores,
        attempts=read.attempts,
        error=read.error if read.ended is None else None,
        train_s=read.ended.train_s if read.ended else None,
        evaluation_s=read.evaluation_s,
        provenance=read.provenance,
        rungs=read.rungs,
        stopped=read.stopped.rung if read.stopped else None,
    )


def _status(read: LedgerSummary) -> Status:
    if read.ended is not None:
        return read.ended.status
    if not read.begun:
        return "missing"
    if read.stopped is not None:
        return "stopped"
    return "failed" if read.failed else "unfinished"


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


def _cells(trials: list[TrialResult]) -> tuple[SeedGroup, ...]:
    by_cell: dict[str, list[TrialResult]] = {}
    for result in trials:
        by_cell.setdefault(result.trial.seed_group_id, []).append(result)
    settings = {seed_group_id: _setting(members[0].trial) for seed_group_id, members in by_cell.items()}
    keys = dict.fromkeys(key for setting in settings.values() for key in setting)
    differing = [key for key in keys if len({s[key] for s in settings.values() if key in s}) > 1]
    return tuple(
        SeedGroup(_label(members[0].trial, settings[seed_group_id], differing), members[0].trial.method, tuple(members))
        for seed_group_id, members in by_cell.items()
    )


def _setting(trial: TrialSpec) -> dict[str, Any]:
    """What may tell two cells of one method apart."""
    return {**trial.model.model_dump(), **trial.training.model_dump(), **trial.evaluation.model_dump()}


def _label(trial: TrialSpec, setting: dict[str, Any], differing: list[str]) -> str:
    details = ", ".join(f"{key} {setting[key]}" for key in differing if key in setting)
    return f"{method_label(trial.method)} ({details})" if details else method_label(trial.method)
