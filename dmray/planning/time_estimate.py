"""Estimate how long trials take, and what would shorten that: their cost, and the measured speed of a calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Literal, NamedTuple

from dmray.errors import ClusterError, SpecError
from dmray.planning.calibration import Calibration, Points, backbone_of, packed_rate, seconds_of
from dmray.planning.cost import decode_states, decode_work, num_targets, training_work, trial_cost
from dmray.planning.packing import pack_key, why_unpacked
from dmray.specs import MAX_SEATS, ResourcesSpec, TrialSpec, parse_decode
from dmray.tasks import task_of

Limit = Literal["training", "the longest trial", "evaluation", "the CPUs"]
_WORTH_SAYING = 0.9  # of the time before: a change that saves less is not shown
_OTHER_DECODES = ("stream:2", "recurrent")
_EVALUATE_LESS = 10
_PACKED_CPUS = 0.25  # a packed trial does not train itself
_UNITS = (("years", 365.25 * 86_400), ("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def duration_text(seconds: float) -> str:
    """Two significant digits in a unit from milliseconds to years: 5_600 -> '93 minutes', 1e7 -> '120 days'."""
    if seconds <= 0:
        return "0 seconds"
    if seconds < 0.95:
        return f"{_two_digits(seconds * 1000)} milliseconds"
    name, unit = next(each for each in _UNITS if seconds >= 1.95 * each[1] or each[1] == 1.0)
    return f"{_two_digits(seconds / unit)} {name}"


def _two_digits(value: float) -> str:
    """5.6, 56, 560: never in powers of ten."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:z,.0f}" if rounded >= 10 else f"{rounded:g}"


@dataclass(frozen=True)
class Capacity:
    """What runs at the same time. `trials` 0: one process runs all trials and their evaluations, one after the other.

    `cpus`: of all machines together, as many as there really are. `trials_on_a_gpu`: how many of the trials share a
    GPU. `gpus`: that have room for a trial.
    """

    trials: int
    cpus: float
    trials_on_a_gpu: int = 1
    gpus: int = 0

    @property
    def at_work(self) -> int:
        """How many trials, or GPUs that trials share, train at the same time."""
        return ceil(self.trials / self.trials_on_a_gpu)


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds. Not included: the start of each trial, and work that is repeated after errors.

    `training_s`: of all trials, one after the other. `evaluation_s`: of all evaluations in one process, if every
    episode runs to its horizon and every quick evaluation is repeated; `least_evaluation_s`: if none is. `by_limit`:
    for each thing that the sweep may have to wait for, how long it would take if it waited for nothing else.
    `gpu_speed`: of trials that share a GPU, the largest `Speed.together`.
    """

    training_s: float
    gpu_s: float
    evaluation_s: float
    least_evaluation_s: float
    by_limit: Mapping[Limit, float]
    least_wall_s: float
    gpu_speed: float = 1.0

    @property
    def wall_s(self) -> float:
        """From the start to the end of the sweep."""
        return sum(self.by_limit.values()) if self.in_one_process else max(self.by_limit.values())

    @property
    def in_one_process(self) -> bool:
        return "the CPUs" not in self.by_limit

    @property
    def limit(self) -> Limit:
        """What takes longest."""
        return max(self.by_limit, key=lambda name: self.by_limit[name])

    @property
    def waits_for_evaluation(self) -> bool:
        """Whether less evaluation would shorten the sweep most."""
        return self.limit == "evaluation" or (self.limit == "the CPUs" and self.evaluation_s > self.training_s)


def estimate_time(
    trials: Sequence[TrialSpec], resources: ResourcesSpec, calibration: Calibration, capacity: Capacity
) -> TimeEstimate:
    """Estimate the time of `trials`, at least one.

    Raises:
        SpecError: the calibration has no measurement of a backbone, decode mode or simulator. The message says which.
    """
    _check(trials, resources, calibration)
    training = [_training_s(trial, calibration, resources) for trial in trials]
    speeds = speeds_of(trials, resources, calibration, capacity)
    of_a_gpu = [seconds / speed.together for seconds, speed in zip(training, speeds, strict=True)]
    longest = max(seconds / speed.own for seconds, speed in zip(training, speeds, strict=True))
    costs = [trial_cost(trial, 1) for trial in trials]
    step_s = [_evaluation_step_s(trial, calibration, resources) for trial in trials]
    evaluation = sum(cost.env_steps * each for cost, each in zip(costs, step_s, strict=True))
    least = sum(cost.least_env_steps * each for cost, each in zip(costs, step_s, strict=True))
    by_limit, least_by_limit = (
        _by_limit(sum(training), sum(of_a_gpu), longest, each, resources, capacity) for each in (evaluation, least)
    )
    return TimeEstimate(
        training_s=sum(training),
        gpu_s=sum(of_a_gpu) * ceil(resources.gpus_per_trial),
        evaluation_s=evaluation,
        least_evaluation_s=least,
        by_limit=by_limit,
        least_wall_s=max(least_by_limit.values()) if capacity.trials else sum(least_by_limit.values()),
        gpu_speed=max(speed.together for speed in speeds),
    )


class Speed(NamedTuple):
    """How fast a trial trains on a GPU that it shares, beside trials like it.

    `own`: times as fast as alone, at most: while the others wait. `together`: times the steps of one trial alone that
    all on the GPU take.
    """

    own: float
    together: float


def speeds_of(
    trials: Sequence[TrialSpec], resources: ResourcesSpec, calibration: Calibration, capacity: Capacity
) -> list[Speed]:
    """Processes take turns, since captured steps leave a GPU no gaps. Packs are as fast as measured.

    Seats of a pack that stay empty cost as much as the others.
    """
    points, seats, at_once = calibration.packed, resources.trials_per_pack, capacity.trials_on_a_gpu
    if seats == 1 or not points:
        return [Speed(1.0, 1.0)] * len(trials)
    keys = [None if why_unpacked(trial) else pack_key(trial) for trial in trials]
    speeds: dict[str | None, Speed] = {None: Speed(1.0, 1.0)}
    for key, alike in Counter(key for key in keys if key is not None).items():
        sharing = min(alike, at_once)
        filled = sharing / (seats * ceil(sharing / seats))
        speeds[key] = Speed(packed_rate(points, seats) / seats, packed_rate(points, ceil(at_once / filled)) * filled)
    return [speeds[key] for key in keys]


def _by_limit(
    training: float, of_gpus: float, longest: float, evaluation: float, resources: ResourcesSpec, capacity: Capacity
) -> dict[Limit, float]:
    """`training`: seconds of all trials alone. `of_gpus`: that they keep a GPU busy. `longest`: of one trial."""
    if not capacity.trials:
        return {"training": training, "evaluation": evaluation}
    return {
        "training": of_gpus / capacity.at_work,
        "the longest trial": longest,
        "evaluation": evaluation / resources.evaluation_actors,
        "the CPUs": (training * resources.torch_threads + evaluation) / capacity.cpus,
    }


def _check(trials: Sequence[TrialSpec], resources: ResourcesSpec, calibration: Calibration) -> None:
    device, acts_on = resources.trial_device, resources.evaluation_device
    lacking = sorted({task_of(trial.dataset).engine for trial in trials} - set(calibration.env_step_s))
    backbones = {backbone_of(trial) for trial in trials}
    if device not in calibration.training:
        lacking.append(f"training on {device}")
    else:
        lacking += sorted(f"training backbone {name}" for name in backbones - set(calibration.training[device]))
    decisions = {(_mode(trial), backbone_of(trial)) for trial in trials}
    lacking += sorted(
        f"decode mode {mode} of backbone {backbone} on {acts_on}"
        for mode, backbone in decisions
        if backbone not in calibration.decisions.get(acts_on, {}).get(mode, {})
    )
    if lacking:
        raise SpecError(
            f"the calibration of {calibration.hardware} has no measurement of {', '.join(lacking)}; "
            "run python -m dmray.doctor --calibrate on a machine that has it"
        )


def _mode(trial: TrialSpec) -> str:
    return parse_decode(trial.evaluation.decode).mode.name


def _training_s(trial: TrialSpec, calibration: Calibration, resources: ResourcesSpec) -> float:
    points = calibration.training[resources.trial_device][backbone_of(trial)]
    return trial.training.steps * seconds_of(points, training_work(trial))


def _evaluation_step_s(trial: TrialSpec, calibration: Calibration, resources: ResourcesSpec) -> float:
    """Seconds of one environment step of one episode, with the policy's action."""
    rows = min(trial.evaluation.cohort_size, trial.evaluation.episodes) * num_targets(trial)
    points: Points = calibration.decisions[resources.evaluation_device][_mode(trial)][backbone_of(trial)]
    decision_s = seconds_of(points, decode_work(trial, rows, decode_states(trial.evaluation.decode))) / rows
    return decision_s + calibration.env_step_s[task_of(trial.dataset).engine]


@dataclass(frozen=True)
class Change:
    """A change that shortens a sweep. `what`: the field and its value. `more_cpus`: that the machines do not have."""

    what: str
    estimate: TimeEstimate
    more_cpus: int = 0
    other_protocol: bool = False


Place = Callable[[ResourcesSpec], Capacity]  # what runs at the same time; raises ClusterError if not one trial fits


def shorter_sweep(
    trials: Sequence[TrialSpec], resources: ResourcesSpec, calibration: Calibration, place: Place
) -> tuple[Change, ...]:
    """What would shorten a sweep that waits for its evaluations or for a GPU, the most effective first; each alone."""
    capacity = place(resources)
    now = estimate_time(trials, resources, calibration, capacity)
    if now.waits_for_evaluation:
        changes = [
            Change(what, estimate_time(_evaluated(trials, update), resources, calibration, capacity), 0, other)
            for what, update, other in _less_evaluation(trials, resources, calibration)
        ]
        if capacity.trials:
            changes += _more_actors(trials, resources, calibration, place)
            changes += _actors_on_gpus(trials, resources, calibration, place)
    else:
        changes = _packs(trials, resources, calibration, place) if capacity.trials else []
    helping = [each for each in changes if each.estimate.least_wall_s < _WORTH_SAYING * now.wall_s]
    return tuple(sorted(helping, key=lambda each: each.estimate.least_wall_s))


def _packs(
    trials: Sequence[TrialSpec], resources: ResourcesSpec, calibration: Calibration, place: Place
) -> list[Change]:
    """Packs of as many trials as can share one, in the best number on a GPU that was measured and fits."""
    alike = Counter(pack_key(trial) for trial in trials if why_unpacked(trial) is None)
    seats = min(max(alike.values(), default=1), MAX_SEATS)
    on_gpus = resources.trial_device == "cuda" and resources.gpus_per_trial <= 1
    if not on_gpus or resources.trials_per_pack > 1 or seats == 1:
        return []
    changes = []
    for together in sorted({max(point.trials, seats) for point in calibration.packed}):
        share = floor(1e6 / together) / 1e6
        fields: dict[str, object] = {"gpus_per_trial": share, "trials_per_pack": seats}
        fields |= {"executor": "tune", "cpus_per_trial": min(resources.cpus_per_trial, _PACKED_CPUS)}
        packed = resources.model_copy(update=fields)
        try:
            estimate = estimate_time(trials, packed, calibration, place(packed))
        except ClusterError:
            continue
        changes.append(Change(" -o ".join(f"resources.{name}={value}" for name, value in fields.items()), estimate))
    return sorted(changes, key=lambda change: change.estimate.wall_s)[:1]


def _less_evaluation(
    trials: Sequence[TrialSpec], resources: ResourcesSpec, calibration: Calibration
) -> list[tuple[str, dict[str, object], bool]]:
    """Changes of `evaluation` that all trials allow: the text, the fields, and whether scores get another protocol."""
    first, steps = trials[0].evaluation, min(trial.training.steps for trial in trials)
    found: list[tuple[str, dict[str, object], bool]] = []
    if _same(trials, "every_steps") and first.every_steps < steps:
        rarely = min(first.every_steps * _EVALUATE_LESS, steps)
        found.append((f"evaluation.every_steps={rarely}", {"every_steps": rarely}, False))
    if _same(trials, "episodes", "quick_episodes") and first.quick_episodes is None:
        quick = first.episodes // _EVALUATE_LESS
        if quick >= 2:  # a single episode has no standard error
            found.append((f"evaluation.quick_episodes={quick}", {"quick_episodes": quick}, False))
    if all(trial.evaluation.decode == "window" for trial in trials):
        measured = calibration.decisions.get(resources.evaluation_device, {})
        contexts = {trial.model.context_length for trial in trials}
        for decode in _OTHER_DECODES:
            mode = parse_decode(decode)
            if {backbone_of(trial) for trial in trials} <= set(measured.get(mode.mode.name, {})) and not any(
                mode.problem(context) for context in contexts
            ):
                found.append((f"evaluation.decode={decode}", {"decode": decode}, True))
    return found


def _same(trials: Sequence[TrialSpec], *fields: str) -> bool:
    return len({tuple(getattr(trial.evaluation, field) for field in fields) for trial in trials}) == 1


def _evaluated(trials: Sequence[TrialSpec], update: Mapping[str, object]) -> tuple[TrialSpec, ...]:
    return tuple(
        trial.model_copy(update={"evaluation": trial.evaluation.model_copy(update=update)}) for trial in trials
    )


def _more_actors(
    trials: Sequence[TrialSpec], resources: ResourcesSpec, calibration: Calibration, place: Place
) -> list[Change]:
    """As many actors as let training be the limit, also if the machines lack the CPUs."""
    capacity = place(resources)
    now = estimate_time(trials, resources, calibration, capacity)
    wanted = ceil(now.evaluation_s / max(now.by_limit["training"], now.by_limit["the longest trial"]))
    actors = min(wanted, _most_busy_actors(trials, resources, capacity.trials))
    if actors <= resources.evaluation_actors:
        return []
    more = resources.model_copy(update={"evaluation_actors": actors})
    cpus = capacity.trials * resources.cpus_per_trial + actors * resources.cpus_per_evaluation_actor
    needed = max(0, ceil(cpus - capacity.cpus))
    estimate = estimate_time(trials, more, calibration, replace(capacity, cpus=capacity.cpus + needed))
    return [Change(f"resources.evaluation_actors={actors}", estimate, needed)]


def _most_busy_actors(trials: Sequence[TrialSpec], resources: ResourcesSpec, concurrent: int) -> int:
    """More actors than this have nothing to do: each rolls out one cohort at a time."""
    cohorts = max(ceil(trial.evaluation.episodes / trial.evaluation.cohort_size) for trial in trials)
    return concurrent * resources.max_pending_evaluations * cohorts


def _actors_on_gpus(
    trials: Sequence[TrialSpec], resources: ResourcesSpec, calibration: Calibration, place: Place
) -> list[Change]:
    """Actors with a GPU each, in the best number that fits; several actors on one GPU were not measured."""
    modes = calibration.decisions.get("cuda", {})
    measured = all(backbone_of(trial) in modes.get(_mode(trial), {}) for trial in trials)
    if resources.gpus_per_evaluation_actor or resources.device == "cpu" or not measured:
        return []
    changes = []
    for count in (2**power for power in range(20)):
        fields = {"evaluation_actors": count, "gpus_per_evaluation_actor": 1.0}
        on_gpus = resources.model_copy(update=fields)
        try:
            estimate = estimate_time(trials, on_gpus, calibration, place(on_gpus))
        except ClusterError:
            break
        text = f"resources.gpus_per_evaluation_actor=1 -o resources.evaluation_actors={count}"
        changes.append(Change(text, estimate))
    return sorted(changes, key=lambda change: change.estimate.wall_s)[:1]
