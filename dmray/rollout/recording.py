"""Transitions in D4RL's layout from rolled-out episodes: of random actions in any task, or of a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from math import ceil

import numpy as np

from dmray.policies import Decoder
from dmray.rollout.cohorts import Cohort, EvaluationRequest, Row, episode_seed, roll_out
from dmray.rollout.engine import Step, make_engine
from dmray.tasks import Task

_MOST_AT_ONCE = 50


@dataclass(frozen=True)
class RecordedTransitions:
    """The arrays of a D4RL file, N transitions, piece after piece; the last step of a piece ends it."""

    observations: np.ndarray  # (N, S) float32, before the step
    actions: np.ndarray  # (N, A) float32, as applied
    rewards: np.ndarray  # (N,) float32, what the engine pays
    terminals: np.ndarray  # (N,) bool
    timeouts: np.ndarray  # (N,) bool
    goals: np.ndarray | None = None  # (N, 2) float32, a controller's targets: `infos/goal` in a file

    def as_arrays(self) -> dict[str, np.ndarray]:
        """By their names in a file."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "goals"}
        return named if self.goals is None else {**named, "infos/goal": self.goals}


def joined(parts: Sequence[RecordedTransitions]) -> RecordedTransitions:
    """All of them, end to end; with goals if all have goals."""
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(RecordedTransitions)}
    given = {name: arrays for name, arrays in columns.items() if all(array is not None for array in arrays)}
    return RecordedTransitions(**{name: np.concatenate(arrays) for name, arrays in given.items()})


def record_random(task: Task, transitions: int, seed: int) -> RecordedTransitions:
    """At least `transitions` transitions in whole episodes of uniform random actions; decided by `seed`, bit for bit.

    Raises:
        EngineError: the task has no simulator here.
    """
    request = EvaluationRequest(task, 0, seed, "random", (None,), _MOST_AT_ONCE)
    return _record_episodes(lambda cohort: RandomActions.of(request, cohort), request, transitions)


def record_decoder(
    make_decoder: Callable[[int], Decoder], request: EvaluationRequest, transitions: int
) -> RecordedTransitions:
    """At least `transitions` transitions in whole episodes of what `make_decoder(rows)` decides.

    It is asked for the request's first target; `request.episodes` does not count.
    """
    return _record_episodes(lambda cohort: make_decoder(len(cohort.rows)), request, transitions)


def _record_episodes(
    make_decoder: Callable[[Cohort], Decoder], request: EvaluationRequest, transitions: int
) -> RecordedTransitions:
    """Cohort after cohort until there are enough; how many episodes that takes follows from those before."""
    target = request.target_returns[0]
    parts: list[RecordedTransitions] = []
    recorded, episodes = 0, 0
    while recorded < transitions:
        expected_length = recorded / episodes if episodes else request.task.horizon
        more = min(request.cohort_size, ceil((transitions - recorded) / expected_length))
        cohort = Cohort(tuple(Row(index, target) for index in range(episodes, episodes + more)))
        parts.append(_record(make_decoder(cohort), request, cohort))
        recorded, episodes = recorded + len(parts[-1].rewards), episodes + more
    return joined(parts)


class RandomActions:
    """A `Decoder` that draws each action uniformly within the limit; an episode's draws follow from its seed."""

    def __init__(self, task: Task, rngs: list[np.random.Generator]) -> None:
        self._limit, self._size, self._rngs = task.action_limit, task.action_dim, rngs

    @classmethod
    def of(cls, request: EvaluationRequest, cohort: Cohort) -> RandomActions:
        seeds = [episode_seed(request.seed, row.index) for row in cohort.rows]
        return cls(request.task, [np.random.default_rng([seed, 1]) for seed in seeds])

    def decide(
        self, observations: np.ndarray, returns_to_go: np.ndarray, done_actions: np.ndarray | None = None
    ) -> np.ndarray:
        """See `Decoder.decide`."""
        drawn = [rng.uniform(-self._limit, self._limit, self._size) for rng in self._rngs]
        return np.array(drawn, dtype=np.float32)

    def keep(self, rows: np.ndarray) -> None:
        """See `Decoder.keep`."""
        self._rngs = [self._rngs[row] for row in rows.tolist()]

    def subgoals(self) -> None:
        """Random actions have none."""


def _record(decoder: Decoder, request: EvaluationRequest, cohort: Cohort) -> RecordedTransitions:
    log: list[tuple[np.ndarray, np.ndarray, np.ndarray, Step]] = []
    with closing(make_engine(request.task, len(cohort.rows))) as engine:
        roll_out(decoder, engine, request, cohort, watch=lambda *step: log.append(step))
    rows, observations, actions = (np.concatenate(part) for part in list(zip(*log, strict=True))[:3])
    steps = Step(*(np.concatenate(part) for part in zip(*(entry[3] for entry in log), strict=True)))
    order = np.argsort(rows, kind="stable")  # episode by episode, each in the order of its steps
    task = request.task
    terminals, timeouts = steps.terminated[order], steps.truncated[order]
    if not task.splits_on_terminals:
        timeouts = timeouts | terminals
    limit = task.action_limit
    return RecordedTransitions(
        observations=observations[order],
        actions=np.clip(actions[order], -limit, limit).astype(np.float32),
        rewards=steps.rewards[order].astype(np.float32),
        terminals=terminals,
        timeouts=timeouts,
    )
