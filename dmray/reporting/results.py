"""Read the results of sweeps from their folders, without Ray, MLflow or a simulator.

A comparison has the results of one data set under one protocol. Its rows are seed groups: the trials of one method and
model that differ only in the seed. Scores of different protocols are never in one comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from multiprocessing import get_context
from typing import Any, Literal

from dmray.methods import METHODS
from dmray.planning.manifest import read_manifest
from dmray.progress.trial_status import DONE, TrialStatus, read_history
from dmray.records import RungDecision, Score, ScoreSeries, Spread, SweepFolder, TrialFolder
from dmray.records.metrics import single_metrics
from dmray.specs import DatasetSpec, EarlyStoppingSpec, TrialSpec
from dmray.tasks import Task, task_of

UNSCORED = tuple(  # from the rarest to the most common in a running sweep
    TrialStatus(name) for name in ("diverged", "stopped_early", "failed", "paused", "started", "waiting")
)
_MAY_BE_STOPPED = (TrialStatus.WAITING, TrialStatus.STARTED, TrialStatus.PAUSED)
_PARALLEL_FROM_BYTES = 2**30  # reading less takes only a few seconds in one process


@dataclass(frozen=True)
class Protocol:
    """The settings that must be equal if two scores are to be compared."""

    simulation: str
    decode: str
    episodes: int
    seed: int

    def __str__(self) -> str:
        return f"{self.simulation}, decode {self.decode}, {self.episodes} episodes, evaluation seed {self.seed}"


@dataclass(frozen=True)
class TrialResult:
    """The result of one trial. Scores are sorted by step.

    `training`: the metrics of the last training record by name. `train_s`: seconds of training, known at the end.
    `evaluation_s`: the sum over evaluations. `decisions`: the decisions of early stopping about it; `stopped_by`: the
    decision that stopped it, if it still holds.
    """

    trial: TrialSpec
    status: TrialStatus
    steps: int
    scores: ScoreSeries
    attempts: int
    error: str | None
    training: dict[str, float]
    train_s: float | None
    evaluation_s: float
    provenance: dict[str, Any]
    decisions: tuple[RungDecision, ...] = ()
    stopped_by: RungDecision | None = None

    @property
    def last(self) -> Score | None:
        """The score of the final weights; None unless the trial finished."""
        return self.scores.last if self.status is TrialStatus.FINISHED else None

    @property
    def best(self) -> Score | None:
        """The highest score during training; None unless the trial finished, as for `last`."""
        return self.scores.best if self.status is TrialStatus.FINISHED else None

    @property
    def last_ten(self) -> float | None:
        """The mean normalized score of the last ten evaluations; None unless the trial finished."""
        return self.scores.mean_of_last(10) if self.status is TrialStatus.FINISHED else None


@dataclass(frozen=True)
class SeedGroup:
    """All seeds of one method and model on one data set. `label` is unique in its comparison."""

    label: str
    method: str
    trials: tuple[TrialResult, ...]

    def count(self, status: TrialStatus) -> int:
        return sum(trial.status is status for trial in self.trials)

    @property
    def stopped(self) -> bool:
        """Whether seeds were stopped early."""
        return self.count(TrialStatus.STOPPED_EARLY) > 0

    @property
    def scored(self) -> tuple[TrialResult, ...]:
        """The trials over which the group's mean is computed: those with a last score.

        Empty if seeds were stopped early or may still be stopped: the other seeds are the better ones, so their mean
        would be biased.
        """
        competing = any(trial.decisions for trial in self.trials)
        if self.stopped or (competing and any(trial.status in _MAY_BE_STOPPED for trial in self.trials)):
            return ()
        return tuple(trial for trial in self.trials if trial.last is not None)

    def spread(self, which: Literal["last", "best"], value: Callable[[Score], float]) -> Spread | None:
        """The mean and standard deviation of `value` over `scored`; None if it is empty."""
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
    """The content of a report. `name`: the name of the sweep, or the names of several, joined by " + ".

    `early_stopping`: the early-stopping rules of the sweeps that have one, by sweep name.
    """

    name: str
    trials: tuple[TrialResult, ...]
    comparisons: tuple[Comparison, ...]
    early_stopping: dict[str, EarlyStoppingSpec] = field(default_factory=dict)

    def count(self, status: TrialStatus) -> int:
        return sum(trial.status is status for trial in self.trials)


def collect(*folders: SweepFolder, protocol: str | None = None) -> SweepResults:
    """Read the manifests and all ledgers of sweeps. `protocol` (such as "d4rl-mujoco"): only the trials of this one.

    A trial that several sweeps have counts once: the one with the most steps, or the one that is done.

    Raises:
        StorageError: there is no sweep in a folder, or a file of it is damaged.
    """
    manifests = [(read_manifest(folder), folder) for folder in folders]
    wanted = [
        (folder.trial(trial.trial_id), trial, manifest.sweep.early_stopping)
        for manifest, folder in manifests
        for trial in manifest.trials
        if protocol in (None, task_of(trial.dataset).protocol)
    ]
    furthest: dict[str, TrialResult] = {}
    for result in _read_results(wanted):
        other = furthest.get(result.trial.trial_id)
        if other is None or _progress(result) > _progress(other):
            furthest[result.trial.trial_id] = result
    trials = tuple(furthest.values())
    sweeps = [manifest.sweep for manifest, _ in manifests]
    rules = {sweep.name: sweep.early_stopping for sweep in sweeps if sweep.early_stopping is not None}
    name = " + ".join(sweep.name for sweep in sweeps)
    return SweepResults(name, trials, tuple(_comparisons(trials)), rules)


def _progress(result: TrialResult) -> tuple[bool, int]:
    return result.status in DONE, result.steps


def _read_results(
    trials: Sequence[tuple[TrialFolder, TrialSpec, EarlyStoppingSpec | None]],
) -> Iterable[TrialResult]:
    """Read the trials' ledgers; if they are large, with as many processes as there are cores."""
    ledgers = [folder.ledger for folder, _, _ in trials]
    if sum(ledger.stat().st_size for ledger in ledgers if ledger.exists()) < _PARALLEL_FROM_BYTES:
        return [_read_result(*each) for each in trials]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return list(pool.map(_read_result, *zip(*trials, strict=True), chunksize=8))


def _read_result(folder: TrialFolder, trial: TrialSpec, rule: EarlyStoppingSpec | None) -> TrialResult:
    history = read_history(folder, trial, rule)
    done, training = history.done, history.last_training
    metrics = single_metrics("train") if training is not None else ()
    return TrialResult(
        trial=trial,
        status=history.status,
        steps=done.step if done else history.step,
        scores=ScoreSeries.of(history.scores.values()),
        attempts=history.attempts,
        error=history.error,
        training={name: value for metric in metrics for name, value in metric.values(training)},
        train_s=done.train_s if done else None,
        evaluation_s=sum(score.values.get("evaluation_s", 0.0) for score in history.scores.values()),
        provenance=history.provenance,
        decisions=tuple(history.decisions.values()),
        stopped_by=history.stopped.decision if history.stopped else None,
    )


def _comparisons(trials: tuple[TrialResult, ...]) -> Iterable[Comparison]:
    order = {dataset: place for place, dataset in enumerate(dict.fromkeys(r.trial.dataset.name for r in trials))}
    ranked = sorted(trials, key=lambda result: (order[result.trial.dataset.name], str(_protocol(result.trial))))
    for _, group in groupby(ranked, key=lambda result: (result.trial.dataset.name, _protocol(result.trial))):
        members = list(group)
        first = members[0].trial
        task = task_of(first.dataset)
        targets = first.evaluation.target_returns or task.target_returns
        yield Comparison(first.dataset, task, _protocol(first), tuple(targets), _seed_groups(members))


def _protocol(trial: TrialSpec) -> Protocol:
    evaluation = trial.evaluation
    return Protocol(task_of(trial.dataset).protocol, evaluation.decode, evaluation.episodes, evaluation.seed)


def _seed_groups(trials: list[TrialResult]) -> tuple[SeedGroup, ...]:
    by_group: dict[str, list[TrialResult]] = {}
    for result in trials:
        by_group.setdefault(result.trial.seed_group_id, []).append(result)
    settings = {seed_group_id: _setting(members[0].trial) for seed_group_id, members in by_group.items()}
    keys = dict.fromkeys(key for setting in settings.values() for key in setting)
    differing = [key for key in keys if len({s[key] for s in settings.values() if key in s}) > 1]
    return tuple(
        SeedGroup(_label(members[0].trial, settings[seed_group_id], differing), members[0].trial.method, tuple(members))
        for seed_group_id, members in by_group.items()
    )


def _setting(trial: TrialSpec) -> dict[str, Any]:
    """The fields in which two seed groups of one method may differ."""
    return {**trial.model.model_dump(), **trial.training.model_dump(), **trial.evaluation.model_dump()}


def _label(trial: TrialSpec, setting: dict[str, Any], differing: list[str]) -> str:
    details = ", ".join(f"{key} {setting[key]}" for key in differing if key in setting)
    label = METHODS[trial.method].label
    if sum(method.label == label for method in METHODS.values()) > 1:  # a package may choose a label that dmray has
        label = f"{label} [{trial.method}]"
    return f"{label} ({details})" if details else label
