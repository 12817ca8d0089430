"""What rolls episodes out: many copies of one task, stepped together, behind three methods.

Shapes: E episodes of the engine, L of them live (being stepped), S `observation_dim`, A `action_dim`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from dmray.errors import EngineError
from dmray.tasks import TASKS, Task


class Step(NamedTuple):
    """What one step gave the rows that were stepped, in the order they were asked for."""

    observations: np.ndarray  # (L, S) float32
    rewards: np.ndarray  # (L,) float64, raw
    terminated: np.ndarray  # (L,) bool, the task ended the episode
    truncated: np.ndarray  # (L,) bool, the horizon did; never both


class VectorEngine(Protocol):
    """Independent episodes of one task. Episode e is decided by its seed and its own actions, bit for bit.

    Nothing resets by itself: a row that ended is not stepped again before the next `reset`.
    """

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start all E episodes anew, episode e from `seeds[e]`; the first observations (E, S) float32."""

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        """Advance the episodes `live` (L,) int64, distinct, by `actions` (L, A), clipped to the task's limit."""

    def close(self) -> None:
        """Let go of the simulator; may be called twice, nothing else may be called after it."""


def make_engine(task: Task, num_episodes: int) -> VectorEngine:
    """A fresh engine for `num_episodes` episodes at a time.

    Raises:
        EngineError: the task's family has no engine here, or its sizes are not the simulator's.
    """
    if task.engine not in ENGINES:
        raise EngineError(
            f"{task.name}: the {task.family} family has no engine here (it would need '{task.engine}'); there are "
            + ", ".join(f"{name} ({', '.join(_families(name))})" for name in sorted(ENGINES))
        )
    assert num_episodes > 0, num_episodes
    engine = ENGINES[task.engine](task.without_zeros(), num_episodes)
    return _WithZeros(engine, task.zero_dims) if task.zero_dims else engine


class _WithZeros:
    """An engine with zeros behind each observation, where a policy was trained on numbers that no simulator shows."""

    def __init__(self, engine: VectorEngine, count: int) -> None:
        self._engine, self._count = engine, count

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        return self._padded(self._engine.reset(seeds))

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        step = self._engine.step(actions, live)
        return step._replace(observations=self._padded(step.observations))

    def close(self) -> None:
        self._engine.close()

    def _padded(self, observations: np.ndarray) -> np.ndarray:
        return np.pad(observations, ((0, 0), (0, self._count)))


def check_sizes(task: Task, observation_dim: int, action_dim: int) -> None:
    """Hold the task's declared sizes against the simulator's.

    Raises:
        EngineError: they differ, so nothing trained for the task could act in it.
    """
    declared, actual = (task.observation_dim, task.action_dim), (observation_dim, action_dim)
    if declared != actual:
        raise EngineError(
            f"{task.name}: declared (observation, action) sizes {declared}, but {task.env_id} has {actual}"
        )


def _families(engine: str) -> list[str]:
    return sorted({task.family for task in TASKS.values() if task.engine == engine})


def _gymnasium(task: Task, num_episodes: int) -> VectorEngine:
    from dmray.rollout.gymnasium_engine import GymnasiumEngine

    return GymnasiumEngine(task, num_episodes)


def _maze2d(task: Task, num_episodes: int) -> VectorEngine:
    from dmray.rollout.maze2d import Maze2dEngine

    return Maze2dEngine(task, num_episodes)


def _antmaze(task: Task, num_episodes: int) -> VectorEngine:
    from dmray.rollout.antmaze import AntMazeEngine

    return AntMazeEngine(task, num_episodes)


def _envpool(task: Task, num_episodes: int) -> VectorEngine:
    from dmray.rollout.envpool_engine import EnvpoolEngine

    return EnvpoolEngine(task, num_episodes)


def _kitchen(task: Task, num_episodes: int) -> VectorEngine:
    from dmray.rollout.kitchen import KitchenEngine

    return KitchenEngine(task, num_episodes)


def _bullet(task: Task, num_episodes: int) -> VectorEngine:
    from dmray.rollout.bullet_engine import BulletEngine

    return BulletEngine(task, num_episodes)


ENGINES: Mapping[str, Callable[[Task, int], VectorEngine]] = {
    "antmaze": _antmaze,
    "bullet": _bullet,
    "envpool": _envpool,
    "gymnasium": _gymnasium,
    "kitchen": _kitchen,
    "maze2d": _maze2d,
}
