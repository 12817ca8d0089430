"""Locomotion through envpool, which steps a batch of simulators in C++ in one call.

envpool contains the MuJoCo release that we pin, so from the same state on an episode equals gymnasium's bit for bit;
only the random starts differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dmray.errors import EngineError
from dmray.registry import unknown
from dmray.rollout.behaviours import RECORDERS
from dmray.rollout.engine import Scene, Simulator, Step, VectorEngine, check_sizes
from dmray.tasks import Task

_NEVER = 2**31 - 1  # envpool's own horizon: the engine counts the task's


class PoolStep(NamedTuple):
    """The results of one call for the rows that were stepped, in the order of the arguments."""

    observations: Any  # an array (L, S) float64, or a mapping of them
    rewards: np.ndarray  # (L,) float32
    terminated: np.ndarray  # (L,) bool


class EpisodePool:
    """One envpool with an environment for each episode; made again at each reset, the only way to seed it.

    Environment e depends on its seed and its own actions only, with any number of `threads`. An environment that has
    ended must not be stepped again: envpool would reset it.

    Raises:
        EngineError: envpool is not installed, or does not know `env_id`.
    """

    def __init__(
        self, task: Task, env_id: str, num_episodes: int, options: Mapping[str, Any] | None = None, threads: int = 1
    ) -> None:
        self._task, self._env_id, self._options = task, env_id, dict(options or {})
        self._count, self._threads = num_episodes, threads
        self._over = np.zeros(num_episodes, dtype=bool)
        self._pool: Any = None
        self._spec = self._checked_spec()

    @property
    def action_dim(self) -> int:
        return int(self._spec.action_space.shape[0])

    @property
    def observation_space(self) -> Any:
        return self._spec.observation_space

    def reset(self, seeds: Sequence[int]) -> Any:
        """First observations of all episodes, episode e from `seeds[e]`."""
        import envpool

        assert len(seeds) == self._count, "one seed an episode"
        self._pool = envpool.make_gymnasium(
            self._env_id,
            num_envs=self._count,
            batch_size=self._count,
            num_threads=self._threads,
            env_seed=[int(seed) for seed in seeds],
            max_episode_steps=_NEVER,
            **self._options,
        )
        self._over[:] = False
        return self._pool.reset()[0]

    def step(self, actions: np.ndarray, rows: np.ndarray) -> PoolStep:
        """Advance the environments `rows` (L,) by `actions` (L, A)."""
        assert self._pool is not None, "reset comes first"
        assert not self._over[rows].any(), "envpool would reset an ended episode"
        observations, rewards, terminated, truncated, info = self._pool.step(
            actions.astype(np.float64), rows.astype(np.int32)
        )
        assert (info["env_id"] == rows).all(), "envpool answers in the order it was asked"
        self._over[rows] = terminated | truncated
        return PoolStep(observations, rewards, terminated & ~truncated)

    def close(self) -> None:
        self._pool = None

    def _checked_spec(self) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import envpool
        except ImportError as missing:
            raise EngineError(
                f"{self._task.name}: envpool cannot be imported ({missing}); pip install envpool==1.2.5"
            ) from missing
        known = envpool.list_all_envs()
        if self._env_id not in known:
            raise EngineError(f"{self._task.name}: {unknown('envpool environment', self._env_id, known)}")
        return envpool.make_spec(self._env_id, **self._options)


class EnvpoolEngine:
    """`VectorEngine` over envpool's environment of gymnasium's id `task.env_id`.

    Raises:
        EngineError: see `EpisodePool`, or the environment's sizes are not the task's.
    """

    def __init__(self, task: Task, num_episodes: int) -> None:
        self._pool = EpisodePool(task, task.env_id, num_episodes)
        check_sizes(task, self._pool.observation_space.shape[0], self._pool.action_dim)
        self._limit, self._horizon = task.action_limit, task.horizon
        self._elapsed = np.zeros(num_episodes, dtype=np.int64)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `VectorEngine.reset`."""
        self._elapsed[:] = 0
        first: np.ndarray = self._pool.reset(seeds)
        return first.astype(np.float32)

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        """See `VectorEngine.step`."""
        step = self._pool.step(np.clip(actions, -self._limit, self._limit), live)
        self._elapsed[live] += 1
        return Step(
            observations=step.observations.astype(np.float32),
            rewards=step.rewards.astype(np.float64),
            terminated=step.terminated,
            truncated=(self._elapsed[live] >= self._horizon) & ~step.terminated,
        )

    def close(self) -> None:
        """Free the pool."""
        self._pool.close()


def _gymnasium_engine(task: Task, num_episodes: int) -> VectorEngine:
    from dmray.rollout.simulators.gymnasium import GymnasiumEngine  # not loaded for evaluation

    return GymnasiumEngine(task, num_episodes)


def _scene(task: Task, observations: np.ndarray) -> Scene:
    from dmray.rollout.simulators.gymnasium import robot_scene

    return robot_scene(task, observations)


SIMULATOR = Simulator(EnvpoolEngine, make_reference=_gymnasium_engine, recorders=RECORDERS, scene=_scene)
