"""Evaluate a stored policy as its sweep does it, or any function from observations to actions; record its episodes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmray.arguments import (
    MAX_COHORT,
    MAX_EPISODES,
    MAX_NOISE,
    MAX_SEED,
    MAX_WORKERS,
    finite_number,
    flag,
    whole_number,
)
from dmray.errors import SpecError
from dmray.inference.acting import numbers
from dmray.inference.policy import Policy, fit_task, load_policy
from dmray.policies import PolicySnapshot, make_decoder
from dmray.records import EvaluationDone, TargetResult, TrialFolder, counting, read_ledger
from dmray.registry import lookup, short_repr
from dmray.rollout import (
    Cohort,
    EpisodeRecord,
    EvaluationRequest,
    Noise,
    RecordedTransitions,
    Step,
    cohorts,
    make_engine,
    record_decoder,
    roll_out,
    run_cohort,
)
from dmray.rollout.pictures import WatchedEpisode
from dmray.tasks import TASKS, Task, made_protocol
from dmray.training import be_deterministic
from dmray.training.determinism import restore_torch_settings
from dmray.trial.evaluation import about, episode_rows, request_for, summarize

PolicyFunction = Callable[[np.ndarray], np.ndarray]  # raw observations (E, S) to raw actions (E, A)
OnCohort = Callable[[int, int], None]  # called with the numbers of finished and of all episodes
NOISES = ("action_noise", "observation_noise")
_EPISODES, _COHORT_SIZE = 100, 50  # for functions; policies have the settings of their sweep


@dataclass(frozen=True)
class EvaluationChanges:
    """What differs from the evaluation of the sweep; None: as the sweep has it. `target_returns`: raw."""

    decode: str | None = None
    episodes: int | None = None
    target_returns: tuple[float, ...] | None = None
    seed: int | None = None
    cohort_size: int | None = None
    action_noise: float | None = None
    observation_noise: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation: `scores` (one per target return) and `episodes` (one record per episode).

    `step`: the policy's number of optimizer steps; 0 for a function. `protocol`: the one that the score belongs to
    (`dmray.tasks.protocol_of`).
    """

    request: EvaluationRequest
    episodes: tuple[EpisodeRecord, ...]
    step: int
    protocol: str

    @property
    def scores(self) -> list[TargetResult]:
        """For each target return (None for methods that take none): mean and deviation, raw and normalized (D4RL)."""
        return summarize(self.request, self.episodes)

    @property
    def normalized(self) -> float:
        """The mean normalized score for the first target return, which is the score of a trial."""
        return self.scores[0].normalized_mean

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per episode, for tables; see `dmray.records.episode_table`."""
        return episode_rows(self.request, self.episodes)

    @property
    def about(self) -> dict[str, str]:
        """The settings that must be equal if two evaluations are to be compared, and the policy's step."""
        return about(self.request, self.step, self.protocol)


def evaluation_request(
    policy: Policy | PolicyFunction,
    task: str | Task | None = None,
    *,
    episodes: int | None = None,
    decode: str | None = None,
    target_returns: Sequence[float] | None = None,
    seed: int | None = None,
    cohort_size: int | None = None,
    action_noise: float | None = None,
    observation_noise: float | None = None,
) -> EvaluationRequest:
    """The settings of an evaluation. Those that are None are the settings of the policy's sweep.

    Raises:
        SpecError: an unknown task or decode mode, a target return for a policy that takes none, a number that is too
            small, a function without a task, or noise in a unit that is not known.
        CheckpointError: the policy's sizes are not those of the task.
    """
    if not isinstance(policy, Policy) and not callable(policy):
        raise SpecError(f"policy {short_repr(policy)}: neither a policy of load_policy nor a function of observations")
    if task is not None and not isinstance(task, str | Task):
        raise SpecError(f"task {short_repr(task)}: give the name of a task, for example 'hopper'")
    named = lookup("task", task, TASKS, SpecError) if isinstance(task, str) else task
    request = _policy_request(policy, named) if isinstance(policy, Policy) else _function_request(named)
    changes = checked_changes(episodes, decode, target_returns, seed, cohort_size, action_noise, observation_noise)
    if changes.target_returns is not None and request.target_returns == (None,):
        kind = policy.method.upper() if isinstance(policy, Policy) else "a function"
        raise SpecError(f"target return {changes.target_returns[0]:g}: {kind} takes no target return")
    given = {each.name: getattr(changes, each.name) for each in fields(changes) if each.name not in NOISES}
    request = replace(request, **{name: value for name, value in given.items() if value is not None})
    request = replace(request, noise=_noise(policy, request, changes))
    if isinstance(policy, Policy):
        make_decoder(policy.network, request.decode, 1)  # raises if the decode mode is invalid
    elif decode is not None:
        raise SpecError(f"decode {decode}: decode modes are for policies; a function has none")
    return request


def checked_changes(
    episodes: int | None,
    decode: str | None,
    target_returns: Sequence[float] | None,
    seed: int | None,
    cohort_size: int | None,
    action_noise: float | None = None,
    observation_noise: float | None = None,
) -> EvaluationChanges:
    """The settings that are given, each checked by itself.

    Raises:
        SpecError: a number is too small or too large, or a target return is given twice.
    """
    return EvaluationChanges(
        decode=decode,
        episodes=None if episodes is None else whole_number("episodes", episodes, 1, MAX_EPISODES),
        target_returns=None if target_returns is None else _targets(target_returns),
        seed=None if seed is None else whole_number("seed", seed, 0, MAX_SEED),
        cohort_size=None if cohort_size is None else whole_number("cohort_size", cohort_size, 1, MAX_COHORT),
        action_noise=_level("action_noise", action_noise),
        observation_noise=_level("observation_noise", observation_noise),
    )


def _require_deviations(policy: Policy, action_noise: float) -> None:
    """Whether the deviation of the actions in the policy's data is known, which is the unit of action noise.

    Raises:
        SpecError: it is not, and there is action noise.
    """
    if action_noise and policy.action_std is None:
        raise SpecError(
            f"action_noise {action_noise:g}: the deviation of the actions in the data of {policy} is not stored with "
            "its weights (they are of an earlier dmray, or published); leave it out, or train the policy again"
        )


def _level(name: str, given: float | None) -> float | None:
    if given is None:
        return None
    level = finite_number(name, given)
    if not 0 <= level <= MAX_NOISE:
        raise SpecError(f"{name} {level:g}: must be from 0 to {MAX_NOISE:g}, in deviations of the data")
    return level


def _noise(policy: Policy | PolicyFunction, request: EvaluationRequest, changes: EvaluationChanges) -> Noise | None:
    """The noise of the policy's sweep with the changes."""
    levels = {name: level for name in NOISES if (level := getattr(changes, name)) is not None}
    if not isinstance(policy, Policy):
        if any(levels.values()):
            name, level = next((name, level) for name, level in levels.items() if level)
            raise SpecError(f"{name} {level:g}: its unit is the deviation of a policy's data; a function has none")
        return None
    made = policy.trial.evaluation
    wanted = {name: levels.get(name, getattr(made, name)) for name in NOISES}
    _require_deviations(policy, wanted["action_noise"])
    return Noise.of(**wanted, deviations=policy.deviations, zero_dims=request.task.zero_dims)


def _targets(given: Sequence[float]) -> tuple[float, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise SpecError(f"target_returns {short_repr(given)}: give a list of numbers")
    targets = tuple(finite_number("target_returns", value) for value in given)
    if not targets or len(set(targets)) < len(targets):
        raise SpecError(f"target_returns {short_repr(list(targets))}: give at least one, and each once")
    return targets


def _policy_request(policy: Policy, task: Task | None) -> EvaluationRequest:
    request = request_for(policy.trial, policy.task, policy.takes_target)  # `_noise` adds the noise
    if task is None or task.name == policy.task.name:
        return request
    targets: tuple[float | None, ...] = task.target_returns if policy.takes_target else (None,)
    return replace(request, task=fit_task(policy, task), target_returns=targets)


def _function_request(task: Task | None) -> EvaluationRequest:
    if task is None:
        raise SpecError("task: missing; the evaluation of a function needs a task, for example 'hopper'")
    return EvaluationRequest(task, _EPISODES, 0, "function", (None,), _COHORT_SIZE)


def evaluate(
    policy: Policy | PolicyFunction,
    request: EvaluationRequest,
    *,
    workers: int = 1,
    deterministic: bool = False,
    on_cohort: OnCohort | None = None,
) -> Evaluation:
    """Roll out all episodes of `request`.

    `workers`: the number of processes, with one thread each; it does not change the result. `deterministic`: as
    `resources.deterministic` of a sweep, which may change last bits. `on_cohort` is called after each cohort.

    Raises:
        EngineError: the task has no simulator here.
        SpecError: there is less than one worker, there are several for a function, or its actions have the wrong shape.
        FloatingPointError: an action is not finite.
    """
    workers, deterministic = whole_number("workers", workers, 1, MAX_WORKERS), flag("deterministic", deterministic)
    total = request.episodes * len(request.target_returns)
    done: list[EpisodeRecord] = []
    for cohort in _cohorts(policy, request, workers, deterministic):
        done.extend(cohort)
        if on_cohort is not None:
            on_cohort(len(done), total)
    if not isinstance(policy, Policy):
        return Evaluation(request, tuple(done), 0, request.task.protocol)
    made = policy.trial.dataset.generate is not None
    protocol = made_protocol(request.task.protocol) if made else request.task.protocol
    return Evaluation(request, tuple(done), policy.step, protocol)


def _cohorts(
    policy: Policy | PolicyFunction, request: EvaluationRequest, workers: int, deterministic: bool
) -> Iterator[tuple[EpisodeRecord, ...]]:
    if not isinstance(policy, Policy):
        if workers != 1:
            raise SpecError(f"workers {workers}: a function is evaluated in this process; leave workers at 1")
        yield from (_run_function(policy, request, cohort) for cohort in cohorts(request))
        return
    works = [(policy.snapshot, request, cohort, deterministic) for cohort in cohorts(request)]
    if workers == 1 or len(works) == 1:
        yield from map(run_work, works)
        return
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(works)), mp_context=spawned) as pool:
        yield from pool.map(run_work, works)


def watch_episodes(
    policy: Policy, request: EvaluationRequest, count: int, deterministic: bool = False
) -> list[WatchedEpisode]:
    """Roll out the first `count` episodes of the first target return again, and record observations and subgoals.

    The whole first cohort is rolled out, because the number of episodes in lockstep affects the last bits. So these
    are exactly the episodes of the evaluation.

    Raises:
        SpecError: the first cohort has fewer episodes.
        EngineError, FloatingPointError: as `evaluate`.
    """
    most = min(request.cohort_size, request.episodes)
    if count > most:
        raise SpecError(f"{count} pictures or videos: at most {most}, the number of episodes in the first cohort")
    all_observations: list[list[np.ndarray]] = [[] for _ in range(count)]
    all_subgoals: list[list[np.ndarray]] = [[] for _ in range(count)]

    def watch(rows: np.ndarray, observations: np.ndarray, actions: np.ndarray, step: Step) -> None:
        subgoals = decoder.subgoals()
        for place, row in enumerate(rows.tolist()):
            if row < count:
                all_observations[row].append(observations[place])
                if subgoals is not None:
                    all_subgoals[row].append(subgoals[place])

    cohort = cohorts(request)[0]
    with computing_as_an_actor(deterministic):
        decoder = make_decoder(policy.network, request.decode, len(cohort.rows))
        with closing(make_engine(request.task, len(cohort.rows))) as engine:
            records = roll_out(decoder, engine, request, cohort, watch)
    return [
        WatchedEpisode(np.stack(observations), np.stack(subgoals) if subgoals else None, record)
        for observations, subgoals, record in zip(all_observations, all_subgoals, records[:count], strict=True)
    ]


def recorded_evaluation(policy: Policy, request: EvaluationRequest) -> EvaluationDone | None:
    """The policy's sweep's evaluation of the same weights, decode mode, seed and noise; None if there is none."""
    made = policy.trial.evaluation
    noise = (request.noise.action_noise, request.noise.observation_noise) if request.noise else (0.0, 0.0)
    if policy.folder is None or noise != (made.action_noise, made.observation_noise):
        return None
    for record in counting(read_ledger(TrialFolder(policy.folder).ledger)):
        if isinstance(record, EvaluationDone):
            same = (policy.step, request.decode, request.seed)
            if (record.step, record.decode, record.seed) == same and request.task == policy.task:
                return record
    return None


def record_checkpoint(
    source: str | Path, task: Task, transitions: int, seed: int, target_return: float | None
) -> RecordedTransitions:
    """Record whole episodes of a stored policy in `task`, without noise, until there are at least `transitions`.

    `source`: as in `load_policy`. `target_return`: raw; None: the task's first one.

    Raises:
        CheckpointError: the file is not a checkpoint, or the policy's sizes are not those of the task.
        SpecError: a target return for a policy that takes none.
    """
    policy = load_policy(source)
    target = target_return if target_return is not None else task.target_returns[0] if policy.takes_target else None
    targets = None if target is None else (target,)
    request = evaluation_request(
        policy,
        task,
        target_returns=targets,
        seed=seed,
        cohort_size=_COHORT_SIZE,
        action_noise=0.0,
        observation_noise=0.0,
    )
    return record_decoder(lambda rows: make_decoder(policy.network, request.decode, rows), request, transitions)


@contextmanager
def computing_as_an_actor(deterministic: bool) -> Iterator[None]:
    """Use the torch settings of an evaluation actor during the block."""
    with restore_torch_settings():
        torch.set_num_threads(1)
        be_deterministic(deterministic)
        yield


def run_work(work: tuple[PolicySnapshot, EvaluationRequest, Cohort, bool]) -> tuple[EpisodeRecord, ...]:
    snapshot, request, cohort, deterministic = work
    with computing_as_an_actor(deterministic):
        return run_cohort(snapshot.build(), request, cohort)


def _run_function(function: PolicyFunction, request: EvaluationRequest, cohort: Cohort) -> tuple[EpisodeRecord, ...]:
    with closing(make_engine(request.task, len(cohort.rows))) as engine:
        return roll_out(_FunctionDecoder(function, request.task), engine, request, cohort)


class _FunctionDecoder:
    """A `Decoder` that calls a function of the current observations."""

    def __init__(self, function: PolicyFunction, task: Task) -> None:
        self._function, self._task = function, task

    def decide(
        self, observations: np.ndarray, returns_to_go: np.ndarray, known_actions: np.ndarray | None = None
    ) -> np.ndarray:
        given = self._function(observations)
        actions = numbers("the function's actions", given)
        expected = (len(observations), self._task.action_dim)
        if actions.shape != expected:
            raise SpecError(
                f"the function returned actions of shape {actions.shape}, but {self._task.name} needs {expected}"
            )
        return actions

    def keep(self, rows: np.ndarray) -> None:
        """Do nothing, since there is no history."""

    def subgoals(self) -> None:
        """Return None: a function has no subgoals."""
