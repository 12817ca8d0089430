"""Episodes recorded in D4RL's layout, of random actions, a behaviour or a policy; and files replayed in a simulator."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from math import ceil

import numpy as np

from dmray.datasets import Episodes, RecordedTransitions
from dmray.errors import EngineError
from dmray.policies import Decoder
from dmray.registry import lookup
from dmray.rollout.cohorts import Cohort, EvaluationRequest, Row, episode_seed, roll_out
from dmray.rollout.engine import PlaceableEngine, Step
from dmray.rollout.simulator_registry import make_engine, make_reference_engine, simulator_of
from dmray.specs import Generation
from dmray.tasks import RANDOM, Task, behaviours_of

_MOST_AT_ONCE = 50


def record(task: Task, generation: Generation) -> RecordedTransitions:
    """What `generation` describes, in `task`; the same for the same seed, bit for bit.

    Raises:
        EngineError: the task has no simulator here, or its simulator no such behaviour.
    """
    if generation.behaviour == RANDOM:
        return record_random(task, generation.transitions, generation.seed)
    recorders = {name: each for name, each in simulator_of(task).recorders.items() if name in behaviours_of(task)}
    recorder = lookup(f"behaviour of {task.name}", generation.behaviour, {RANDOM: None, **recorders}, EngineError)
    assert recorder is not None
    return recorder(task, generation)


def record_random(task: Task, transitions: int, seed: int) -> RecordedTransitions:
    """At least `transitions` transitions in whole episodes of uniform random actions; decided by `seed`, bit for bit.

    Raises:
        EngineError: the task has no simulator here.
    """
    request = EvaluationRequest(task, 0, seed, RANDOM, (None,), _MOST_AT_ONCE)
    return record_episodes(lambda cohort: RandomActions.of(request, cohort), request, transitions)


def record_decoder(
    make_decoder: Callable[[int], Decoder], request: EvaluationRequest, transitions: int
) -> RecordedTransitions:
    """At least `transitions` transitions in whole episodes of the decoders that `make_decoder(rows)` makes.

    The target return is the request's first one; `request.episodes` and `request.decode` are not used.
    """
    return record_episodes(lambda cohort: make_decoder(len(cohort.rows)), request, transitions)


def record_episodes(
    make_decoder: Callable[[Cohort], Decoder], request: EvaluationRequest, transitions: int
) -> RecordedTransitions:
    """As `record_decoder`, for decoders that depend on which episodes a cohort has.

    Cohort after cohort until there are enough; how many episodes that takes follows from those before.
    """
    target = request.target_returns[0]
    parts: list[RecordedTransitions] = []
    recorded, episodes = 0, 0
    while recorded < transitions:
        expected_length = recorded / episodes if episodes else request.task.horizon
        more = min(request.cohort_size, ceil((transitions - recorded) / expected_length))
        cohort = Cohort(tuple(Row(index, target) for index in range(episodes, episodes + more)))
        parts.append(_record(make_decoder(cohort), request, cohort))
        recorded, episodes = recorded + len(parts[-1].rewards), episodes + more
    return RecordedTransitions.joined(parts)


class RandomActions:
    """A `Decoder` that draws each action uniformly within the limit; an episode's draws follow from its seed."""

    def __init__(self, task: Task, rngs: list[np.random.Generator]) -> None:
        self._limit, self._size, self._rngs = task.action_limit, task.action_dim, rngs

    @classmethod
    def of(cls, request: EvaluationRequest, cohort: Cohort) -> RandomActions:
        seeds = [episode_seed(request.seed, row.index) for row in cohort.rows]
        return cls(request.task, [np.random.default_rng([seed, 1]) for seed in seeds])

    def decide(
        self, observations: np.ndarray, returns_to_go: np.ndarray, known_actions: np.ndarray | None = None
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


def replay_errors(task: Task, episodes: Episodes, steps: int = 20, most_episodes: int = 100) -> np.ndarray:
    """Per episode, the largest difference of any number after 1 ... `steps` steps, (episodes, steps) float64.

    The first `most_episodes` episodes that are long enough are started at their first observation and driven by their
    recorded actions. Numbers that no simulator shows are not compared. A file's float32 start is off by 1e-7, which
    grows to 1e-3 within 20 steps in a few episodes with hard contacts.

    Raises:
        EngineError: the task's observations do not hold its simulator's state, or no episode is long enough.
    """
    bare = task.without_zeros()
    firsts = episodes.starts[:-1][episodes.lengths > steps][:most_episodes]
    if not firsts.size:
        raise EngineError(f"{task.name}: no episode is longer than {steps} steps, so none can be replayed")
    every = np.arange(len(firsts))
    engine = make_reference_engine(bare, len(firsts))
    if not isinstance(engine, PlaceableEngine):
        raise EngineError(f"{task.name}: its observations do not hold the simulator's state, so none can be replayed")
    errors = np.zeros((len(firsts), steps))
    with closing(engine):
        engine.reset(every.tolist())
        engine.place(episodes.observations[firsts, : bare.observation_dim].astype(np.float64))
        for step in range(steps):
            shown = engine.step(episodes.actions[firsts + step], every).observations
            expected = episodes.observations[firsts + step + 1, : bare.observation_dim]
            errors[:, step] = np.abs(shown - expected).max(axis=1)
    return errors
