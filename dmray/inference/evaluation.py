"""Closed-loop evaluation of a policy, as a sweep does it, apart from any sweep; and of any function that acts."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dmray.errors import SpecError
from dmray.inference.policy import Policy, fit_task
from dmray.policies import PolicySnapshot, make_decoder
from dmray.records import EvaluationDone, TargetResult, TrialFolder, read_ledger
from dmray.registry import lookup
from dmray.rollout import (
    Cohort,
    EpisodeRecord,
    EvaluationRequest,
    Step,
    cohorts,
    make_engine,
    roll_out,
    run_cohort,
)
from dmray.rollout.pictures import WatchedEpisode
from dmray.tasks import TASKS, Task
from dmray.training import be_deterministic
from dmray.training.determinism import restore_torch_settings
from dmray.trial.evaluation import about, episode_rows, request_for, summarize

PolicyFunction = Callable[[np.ndarray], np.ndarray]  # raw observations (E, S) to raw actions (E, A)
OnCohort = Callable[[int, int], None]  # episodes done, episodes in all
_EPISODES, _COHORT_SIZE = 100, 50  # of functions; policies know how their sweep evaluated them


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation: `scores`, one a target return, and `episodes`, one record an episode.

    `step`: the optimizer steps of the policy, 0 for a function.
    """

    request: EvaluationRequest
    episodes: tuple[EpisodeRecord, ...]
    step: int = 0

    @property
    def scores(self) -> list[TargetResult]:
        """Per target return (None for methods that take none): mean and deviation, raw and normalized (D4RL)."""
        return summarize(self.request, self.episodes)

    @property
    def normalized(self) -> float:
        """The mean normalized score under the first target return: what a trial is judged by."""
        return self.scores[0].normalized_mean

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row an episode, for tables; see `dmray.records.episode_table`."""
        return episode_rows(self.request, self.episodes)

    @property
    def about(self) -> dict[str, str]:
        """What must be the same for two evaluations to be compared."""
        return about(self.request, self.step)


def evaluation_request(
    policy: Policy | PolicyFunction,
    task: str | Task | None = None,
    *,
    episodes: int | None = None,
    decode: str | None = None,
    target_returns: Sequence[float] | None = None,
    seed: int | None = None,
    cohort_size: int | None = None,
) -> EvaluationRequest:
    """What is to be evaluated. What is None is as in the policy's sweep.

    Raises:
        SpecError: an unknown task or decode mode, a target return for a policy that takes none, a number below its
            least, or a function without a task.
        CheckpointError: the policy cannot act in the task.
    """
    for name, value, least in (("episodes", episodes, 1), ("seed", seed, 0), ("cohort_size", cohort_size, 1)):
        if value is not None and value < least:
            raise SpecError(f"{name} {value}: must be at least {least}")
    if not isinstance(policy, Policy) and not callable(policy):
        raise SpecError(f"policy {policy!r}: neither a policy of load_policy nor a function of observations")
    named = lookup("task", task, TASKS, SpecError) if isinstance(task, str) else task
    request = _policy_request(policy, named) if isinstance(policy, Policy) else _function_request(named)
    changes: dict[str, Any] = {"episodes": episodes, "decode": decode, "seed": seed, "cohort_size": cohort_size}
    if target_returns is not None:
        if request.target_returns == (None,):
            kind = policy.method.upper() if isinstance(policy, Policy) else "a function"
            raise SpecError(f"target return {target_returns[0]:g}: {kind} takes no target return")
        if not target_returns or not np.isfinite(target_returns).all():
            raise SpecError(f"target returns {list(target_returns)}: give at least one, each a finite number")
        changes["target_returns"] = tuple(target_returns)
    request = replace(request, **{name: value for name, value in changes.items() if value is not None})
    if isinstance(policy, Policy):
        make_decoder(policy.network, request.decode, 1)  # says now what is wrong with the decode mode
    elif decode is not None:
        raise SpecError(f"decode {decode}: a function has no history to decode from; leave it out")
    return request


def _policy_request(policy: Policy, task: Task | None) -> EvaluationRequest:
    request = request_for(policy.trial, policy.task, policy.takes_target)
    if task is None or task.name == policy.task.name:
        return request
    targets: tuple[float | None, ...] = task.target_returns if policy.takes_target else (None,)
    return replace(request, task=fit_task(policy, task), target_returns=targets)


def _function_request(task: Task | None) -> EvaluationRequest:
    if task is None:
        raise SpecError("task: missing; a function does not say what it is for, so name a task, for example 'hopper'")
    return EvaluationRequest(task, _EPISODES, 0, "function", (None,), _COHORT_SIZE)


def evaluate(
    policy: Policy | PolicyFunction,
    request: EvaluationRequest,
    *,
    workers: int = 1,
    deterministic: bool = False,
    on_cohort: OnCohort | None = None,
) -> Evaluation:
    """Roll out all episodes of `request`; the result is the same for any number of `workers`.

    `workers`: processes of one thread each. `deterministic`: as a sweep with `resources.deterministic`, which may
    change last bits. `on_cohort` is called after each cohort.

    Raises:
        EngineError: the task has no simulator here.
        SpecError: less than one worker, several for a function, or a function gave actions of another shape.
        FloatingPointError: an action is not finite.
    """
    if workers < 1:
        raise SpecError(f"workers {workers}: must be at least 1")
    total = request.episodes * len(request.target_returns)
    done: list[EpisodeRecord] = []
    for cohort in _cohorts(policy, request, workers, deterministic):
        done.extend(cohort)
        if on_cohort is not None:
            on_cohort(len(done), total)
    return Evaluation(request, tuple(done), policy.step if isinstance(policy, Policy) else 0)


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
        yield from map(_run, works)
        return
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(works)), mp_context=spawned) as pool:
        yield from pool.map(_run, works)


def watch_episodes(
    policy: Policy, request: EvaluationRequest, count: int, deterministic: bool = False
) -> list[WatchedEpisode]:
    """The first `count` episodes under the first target: the very episodes scored, with what was observed.

    They are rolled out once more, with all of their cohort beside them, since its size decides the last bits.

    Raises:
        SpecError: they are not all in the first cohort.
        EngineError, FloatingPointError: as `evaluate`.
    """
    most = min(request.cohort_size, request.episodes)
    if count > most:
        raise SpecError(f"{count} pictures or videos: only episodes of the first cohort can be watched, {most}")
    seen: list[list[np.ndarray]] = [[] for _ in range(count)]
    led: list[list[np.ndarray]] = [[] for _ in range(count)]

    def watch(rows: np.ndarray, observations: np.ndarray, actions: np.ndarray, step: Step) -> None:
        subgoals = decoder.subgoals()
        for place, row in enumerate(rows.tolist()):
            if row < count:
                seen[row].append(observations[place])
                if subgoals is not None:
                    led[row].append(subgoals[place])

    cohort = cohorts(request)[0]
    with computing_as_an_actor(deterministic):
        decoder = make_decoder(policy.network, request.decode, len(cohort.rows))
        with closing(make_engine(request.task, len(cohort.rows))) as engine:
            records = roll_out(decoder, engine, request, cohort, watch)
    return [
        WatchedEpisode(np.stack(observations), np.stack(subgoals) if subgoals else None, record)
        for observations, subgoals, record in zip(seen, led, records[:count], strict=True)
    ]


def recorded_evaluation(policy: Policy, request: EvaluationRequest) -> EvaluationDone | None:
    """What the policy's sweep recorded of the same weights, decode mode and seed; None where it recorded nothing."""
    if policy.folder is None:
        return None
    for record in read_ledger(TrialFolder(policy.folder).ledger):
        if isinstance(record, EvaluationDone):
            same = (policy.step, request.decode, request.seed)
            if (record.step, record.decode, record.seed) == same and request.task == policy.task:
                return record
    return None


@contextmanager
def computing_as_an_actor(deterministic: bool) -> Iterator[None]:
    """Have this process compute as an evaluation actor does, and afterwards as before."""
    with restore_torch_settings():
        torch.set_num_threads(1)
        be_deterministic(deterministic)
        yield


def _run(work: tuple[PolicySnapshot, EvaluationRequest, Cohort, bool]) -> tuple[EpisodeRecord, ...]:
    snapshot, request, cohort, deterministic = work
    with computing_as_an_actor(deterministic):
        return run_cohort(snapshot.build(), request, cohort)


def _run_function(function: PolicyFunction, request: EvaluationRequest, cohort: Cohort) -> tuple[EpisodeRecord, ...]:
    with closing(make_engine(request.task, len(cohort.rows))) as engine:
        return roll_out(_FunctionDecoder(function, request.task), engine, request, cohort)


class _FunctionDecoder:
    """A function of observations as a `Decoder`; it has no history."""

    def __init__(self, function: PolicyFunction, task: Task) -> None:
        self._function, self._task = function, task

    def decide(
        self, observations: np.ndarray, returns_to_go: np.ndarray, done_actions: np.ndarray | None = None
    ) -> np.ndarray:
        given = self._function(observations)
        try:
            actions = np.asarray(given, dtype=np.float32)
        except (TypeError, ValueError) as cause:
            raise SpecError(f"the function gave no array of numbers: {cause}") from cause
        expected = (len(observations), self._task.action_dim)
        if actions.shape != expected:
            raise SpecError(
                f"the function gave actions of shape {actions.shape}, but {self._task.name} takes {expected}"
            )
        return actions

    def keep(self, rows: np.ndarray) -> None:
        """Nothing is kept."""

    def subgoals(self) -> None:
        """A function has none."""
