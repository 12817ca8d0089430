"""Read the results of sweeps from their folders, without Ray, MLflow or a simulator.

A comparison has the results of one data set under one protocol. Its rows are seed groups: the trials of one method and
model that differ only in the seed. Scores of different protocols are never in one comparison, and neither are scores
of different contents of a data set, releases of a simulator, or code (`dmray.records.identity`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from multiprocessing import get_context
from typing import Any, Literal, NamedTuple

from dmray.errors import StorageError
from dmray.methods import METHODS
from dmray.planning.manifest import read_manifest
from dmray.planning.plan import Plan
from dmray.planning.search import GroupResult
from dmray.planning.search_space import OPEN, Outcome
from dmray.planning.settings import details_of
from dmray.progress.search_progress import outcome, results_of_search
from dmray.progress.trial_status import DONE, TrialHistory, TrialStatus, read_history
from dmray.records import (
    Reevaluation,
    ResultIdentity,
    RungDecision,
    Score,
    ScoreSeries,
    Spread,
    SweepFolder,
    TrialFolder,
    identity_of,
    read_reevaluations,
)
from dmray.records.identity import differing_parts, group_id, simulator_releases
from dmray.records.metrics import single_metrics
from dmray.specs import DatasetSpec, EarlyStoppingSpec, SearchSpec, SweepSpec, TrialSpec, content_hash, noise_text
from dmray.tasks import Task, protocol_of, task_of

UNSCORED = tuple(  # from the rarest to the most common in a running sweep
    TrialStatus(name) for name in ("diverged", "stopped_early", "failed", "paused", "started", "waiting")
)
_MAY_BE_STOPPED = (TrialStatus.WAITING, TrialStatus.STARTED, TrialStatus.PAUSED)
_DECIDED_BY_EVALUATION = ("task", "simulator", "plugins")  # parts of a provenance
_IMPOSSIBLE = 1e15  # of a return; sums of much larger numbers overflow
_PARALLEL_FROM_BYTES = 2**30  # reading less takes only a few seconds in one process


@dataclass(frozen=True)
class Protocol:
    """The settings of a sweep file that must be equal if two scores are to be compared.

    `reevaluated`: the checkpoint ("final", "best", "step:10000", each also "(deterministic)") of an evaluation that was
    made after the training; empty for the evaluations of the training itself. The two are never in one comparison.
    """

    simulation: str
    decode: str
    episodes: int
    seed: int
    reevaluated: str = ""
    action_noise: float = 0.0
    observation_noise: float = 0.0

    @property
    def settings(self) -> dict[str, str]:
        """Its fields as people know them."""
        return {
            "simulation": self.simulation,
            "decode mode": self.decode,
            "episodes": str(self.episodes),
            "evaluation seed": str(self.seed),
            "action noise": f"{self.action_noise:g}",
            "observation noise": f"{self.observation_noise:g}",
        }

    def __str__(self) -> str:
        again = f"; evaluated again: checkpoint {self.reevaluated}" if self.reevaluated else ""
        noise = noise_text(self)
        settings = f"decode {self.decode}, {self.episodes} episodes, evaluation seed {self.seed}{noise}"
        return f"{self.simulation}, {settings}{again}"


@dataclass(frozen=True)
class TrialResult:
    """The result of one trial. Scores are sorted by step.

    `training`: the metrics of the last training record by name. `train_s`: seconds of training, known at the end.
    `evaluation_s`: the sum over evaluations. `decisions`: the decisions of early stopping about it; `stopped_by`: the
    decision that stopped it, if it still holds. `identity`: what its scores depend on beside the spec; None before the
    first attempt. `begun_s`: when the last attempt began. `damage`: why its records cannot be read, or not all.
    `is_selection`: it served to choose a setting in a search, so it is in no comparison.
    `reevaluated`: as in `Protocol`; then `trial` has the settings of that evaluation, `trained_as` is the
    trial's id, and there is one score.
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
    identity: ResultIdentity | None = None
    begun_s: float = 0.0
    damage: str | None = None
    is_selection: bool = False
    reevaluated: str = ""
    trained_as: str = ""

    @property
    def protocol(self) -> Protocol:
        """What its scores were measured under."""
        made = self.trial.evaluation
        simulation = protocol_of(self.trial.dataset)
        noise = made.action_noise, made.observation_noise
        return Protocol(simulation, made.decode, made.episodes, made.seed, self.reevaluated, *noise)

    @property
    def group_id(self) -> str:
        """The id of its seed group: of its settings, and of what its scores depend on beside them."""
        return group_id(self.trial, self.identity) + ("-selection" if self.is_selection else "")

    @property
    def last(self) -> Score | None:
        """The score of the final weights; None unless the trial finished."""
        return self.scores.last if self.status is TrialStatus.FINISHED else None

    @property
    def best(self) -> Score | None:
        """The highest score during training; None unless the trial finished, as for `last`."""
        return self.scores.best if self.status is TrialStatus.FINISHED else None

    def mean_of_last(self, count: int) -> float | None:
        """The mean normalized score of the last `count` evaluations; None unless it finished and has as many."""
        enough = self.status is TrialStatus.FINISHED and self.num_evaluations >= count
        return self.scores.mean_of_last(count) if enough else None

    @property
    def num_evaluations(self) -> int:
        """The number of evaluations over all episodes: those that are not quick."""
        return int((~self.scores.quick).sum())


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
    """The methods on one data set under one protocol.

    `identity`: the content of the data, the simulator and the code of all its scores; None while no trial has begun.
    `apart`: the parts of it in which other comparisons of this data set differ.
    """

    dataset: DatasetSpec
    task: Task
    protocol: Protocol
    target_returns: tuple[float, ...]
    seed_groups: tuple[SeedGroup, ...]
    identity: ResultIdentity | None = None
    apart: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The data set's name, with what sets these results apart: "hopper-medium-v2 (data 3fa9c1)"."""
        if self.identity is None or not self.apart:
            return self.dataset.name
        return f"{self.dataset.name} ({self.identity.label(self.apart)})"

    @property
    def simulators(self) -> dict[str, str]:
        """The releases of the packages that its simulator runs on."""
        begun = (trial for trial in self.trials if trial.identity is not None)
        return next((simulator_releases(trial.provenance) for trial in begun), {})

    @property
    def trials(self) -> tuple[TrialResult, ...]:
        return tuple(trial for seed_group in self.seed_groups for trial in seed_group.trials)


class SearchResult(NamedTuple):
    """The search of a sweep: `groups` says how far it is for each method, and what was chosen."""

    sweep: SweepSpec
    search: SearchSpec
    groups: tuple[GroupResult, ...]


@dataclass(frozen=True)
class SweepResults:
    """The content of a report. `name`: the name of the sweep, or the names of several, joined by " + ".

    `early_stopping`: the early-stopping rules of the sweeps that have one, by sweep name. `run_twice`: sentences about
    trials that several sweeps ran on other data or with other code; one of their results is here. `reevaluated`: the
    comparisons of evaluations that were made after the training, in none of the other numbers.
    """

    name: str
    trials: tuple[TrialResult, ...]
    comparisons: tuple[Comparison, ...]
    early_stopping: dict[str, EarlyStoppingSpec] = field(default_factory=dict)
    run_twice: tuple[str, ...] = ()
    searches: tuple[SearchResult, ...] = ()
    reevaluated: tuple[Comparison, ...] = ()

    def count(self, status: TrialStatus) -> int:
        return sum(trial.status is status for trial in self.trials)


def collect(*folders: SweepFolder, protocol: str | None = None) -> SweepResults:
    """Read the manifests and all ledgers of sweeps. `protocol` (such as "d4rl-mujoco"): only the trials of this one.

    A trial that several sweeps have counts once: the one with the most steps, or the one that is done.

    Raises:
        StorageError: there is no sweep in a folder, or its manifest is damaged. (A trial whose records are damaged has
            the status failed and says why.)
    """
    manifests = [(read_manifest(folder), folder) for folder in folders]
    wanted = [
        (folder.trial(trial.trial_id), trial, manifest.sweep.early_stopping_of(trial))
        for manifest, folder in manifests
        for trial in manifest.trials
        if _is_wanted(trial, protocol)
    ]
    furthest: dict[str, TrialResult] = {}
    places: dict[str, SweepFolder] = {}
    unlike: dict[str, None] = {}
    homes = [folder for manifest, folder in manifests for trial in manifest.trials if _is_wanted(trial, protocol)]
    for folder, result in zip(homes, _read_results(wanted), strict=True):
        other = furthest.get(result.trial.trial_id)
        if other is not None and None not in (other.identity, result.identity) and other.identity != result.identity:
            unlike[result.trial.trial_id] = None
        if other is None or _progress(result) > _progress(other):
            furthest[result.trial.trial_id], places[result.trial.trial_id] = result, folder
    reported = {trial.trial_id for each, _ in manifests for trial in each.trials if not each.sweep.is_selection(trial)}
    trials = tuple(replace(each, is_selection=trial_id not in reported) for trial_id, each in furthest.items())
    compared = tuple(each for each in trials if not each.is_selection)
    sweeps = [manifest.sweep for manifest, _ in manifests]
    rules = {sweep.name: sweep.early_stopping for sweep in sweeps if sweep.early_stopping is not None}
    name = " + ".join(sweep.name for sweep in sweeps)
    return SweepResults(
        name,
        trials,
        tuple(_comparisons(compared)),
        rules,
        tuple(_run_twice(unlike)),
        searches=tuple(_searches([manifest for manifest, _ in manifests], furthest)),
        reevaluated=tuple(_comparisons(_evaluated_again(compared, places))),
    )


def _searches(manifests: Sequence[Plan], results: Mapping[str, TrialResult]) -> Iterable[SearchResult]:
    for manifest in manifests:
        search = manifest.sweep.search
        if search is None:
            continue

        def outcome_of(trial: TrialSpec, by: Literal["last", "best"] = search.by) -> Outcome:
            result = results.get(trial.trial_id)  # none for a trial of another protocol
            return outcome(result.status, list(result.scores), by) if result is not None else OPEN

        yield SearchResult(manifest.sweep, search, tuple(results_of_search(manifest, outcome_of)))


def _is_wanted(trial: TrialSpec, protocol: str | None) -> bool:
    return protocol in (None, protocol_of(trial.dataset))


def _evaluated_again(trials: Sequence[TrialResult], places: Mapping[str, SweepFolder]) -> tuple[TrialResult, ...]:
    """A result for each evaluation that was made after the training.

    All seeds of a group are there under each of its protocols, also those without that evaluation: a group of which
    seeds were stopped early, or are missing, shows it.
    """
    groups: dict[tuple[str, ResultIdentity | None], list[TrialResult]] = {}
    for result in trials:
        groups.setdefault((result.trial.seed_group_id, result.identity), []).append(result)
    found = []
    for (setting, identity), begun in groups.items():
        if identity is None:
            continue
        by_protocol: dict[str, dict[str, Reevaluation]] = {}
        for result in (each for each in begun if each.status is TrialStatus.FINISHED):
            for record in read_reevaluations(places[result.trial.trial_id], result.trial.trial_id):
                by_protocol.setdefault(record.conditions.protocol, {})[result.trial.trial_id] = record
        for records in by_protocol.values():
            example = next(iter(records.values()))
            evaluated = {name: example.provenance.get(name) for name in _DECIDED_BY_EVALUATION}
            shared = _identity_again(identity, example.conditions.applied_to(begun[0].trial), example)
            for result in (*begun, *groups.get((setting, None), ())):
                made = records.get(result.trial.trial_id)
                again = replace(
                    result,
                    trial=example.conditions.applied_to(result.trial),
                    reevaluated=example.conditions.label,
                    trained_as=result.trial.trial_id,
                    identity=shared,
                    provenance={**result.provenance, **evaluated},
                    scores=ScoreSeries.of([Score.of(made.evaluation)] if made else []),
                    evaluation_s=made.wall_s if made else 0.0,
                )
                found.append(again)
    return tuple(found)


def _identity_again(trained: ResultIdentity, example: TrialSpec, record: Reevaluation) -> ResultIdentity:
    """Of the evaluation that `record` has, of `example` or another seed, by another process than its training."""
    code = trained.code
    if record.conditions.code != code:
        code = content_hash([code, record.conditions.code])[: len(record.conditions.code)]
    return trained._replace(protocol=identity_of(example, record.provenance).protocol, code=code)


def _run_twice(trial_ids: Iterable[str]) -> Iterable[str]:
    for trial_id in trial_ids:
        yield (
            f"{trial_id}: several of these sweeps ran it, on other data or with other code; the result here is of the "
            "one that has most steps. Write a report of each sweep to see both."
        )


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
    if history.damage is not None:
        return _damaged(trial, history.damage)
    try:
        return _result_of(history)
    except StorageError as cause:  # the other trials are results nevertheless
        return _damaged(trial, str(cause))


def _damaged(trial: TrialSpec, why: str) -> TrialResult:
    return TrialResult(
        trial=trial,
        status=TrialStatus.FAILED,
        steps=0,
        scores=ScoreSeries.of(()),
        attempts=0,
        error=why,
        training={},
        train_s=None,
        evaluation_s=0.0,
        provenance={},
        damage=why,
    )


def _result_of(history: TrialHistory) -> TrialResult:
    for score in history.scores.values():
        for name, value in score.values.items():
            if abs(value) > _IMPOSSIBLE:
                raise StorageError(
                    f"{history.trial.trial_id}: {name} {value:g} of step {score.step:,} is no score; restore the "
                    "ledger from a copy, or delete the trial's folder to run the trial again"
                )
    done, training = history.done, history.last_training
    metrics = single_metrics("train") if training is not None else ()
    return TrialResult(
        trial=history.trial,
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
        identity=history.identity,
        begun_s=history.last_attempt.time_s if history.last_attempt else 0.0,
    )


def _comparisons(trials: tuple[TrialResult, ...]) -> Iterable[Comparison]:
    order = {dataset: place for place, dataset in enumerate(dict.fromkeys(r.trial.dataset.name for r in trials))}
    ranked = sorted(trials, key=lambda result: (order[result.trial.dataset.name], str(result.protocol)))
    for _, group in groupby(ranked, key=lambda result: result.trial.dataset.name):
        yield from _comparisons_of_dataset(list(group))


def _comparisons_of_dataset(trials: list[TrialResult]) -> list[Comparison]:
    found = []
    for _, group in groupby(trials, key=lambda result: result.protocol):
        for identity, members in _by_identity(list(group)).items():
            first = members[0].trial
            task = task_of(first.dataset)
            targets = first.evaluation.target_returns or task.target_returns
            rows = _seed_groups(members)
            found.append(Comparison(first.dataset, task, members[0].protocol, tuple(targets), rows, identity))
    apart = differing_parts([each.identity for each in found if each.identity is not None])
    if len({each.protocol for each in found}) == len(found):  # their titles have the protocol already
        apart = tuple(part for part in apart if part != "protocol")
    return [replace(each, apart=apart) for each in found]


def _by_identity(trials: list[TrialResult]) -> dict[ResultIdentity | None, list[TrialResult]]:
    """Trials of one data set and protocol by what their scores depend on; those that have not begun by the newest."""
    begun = sorted((trial for trial in trials if trial.identity), key=lambda trial: trial.begun_s)
    newest = begun[-1].identity.shared if begun and begun[-1].identity else None
    found: dict[ResultIdentity | None, list[TrialResult]] = {}
    for trial in trials:
        found.setdefault(trial.identity.shared if trial.identity else newest, []).append(trial)
    return found


def _seed_groups(trials: list[TrialResult]) -> tuple[SeedGroup, ...]:
    """The rows of a comparison; two releases of the package of a method are two rows."""
    packages: dict[str, str] = {}  # of each setting's newest attempt, for its trials that have not begun
    for result in sorted((each for each in trials if each.identity), key=lambda each: each.begun_s):
        packages[result.trial.seed_group_id] = result.identity.method if result.identity else ""
    by_group: dict[tuple[str, str], list[TrialResult]] = {}
    for result in trials:
        group = result.trial.seed_group_id
        package = result.identity.method if result.identity else packages.get(group, "")
        by_group.setdefault((group, package), []).append(result)
    details = details_of([result.trial for result in trials])
    groups = []
    for (group, package), members in by_group.items():
        several = sum(other == group for other, _ in by_group) > 1
        differs = [details[group], (package or "of dmray") if several else ""]
        first = members[0].trial
        groups.append(SeedGroup(label_of(first, ", ".join(filter(None, differs))), first.method, tuple(members)))
    return tuple(groups)


def label_of(trial: TrialSpec, details: str) -> str:
    """The method's label with `details` (`dmray.planning.settings.details_of`)."""
    label = METHODS[trial.method].label
    if sum(method.label == label for method in METHODS.values()) > 1:  # a package may choose a label that dmray has
        label = f"{label} [{trial.method}]"
    return f"{label} ({details})" if details else label
