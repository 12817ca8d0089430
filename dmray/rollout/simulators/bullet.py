"""The paper's own locomotion tasks in d4rl's own environments: pybullet behind gym's old interface.

dmray does not require gym, d4rl and pybullet ("make bullet" installs them, docs/bullet.md); they are imported only when
an engine is made.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from inspect import isbuiltin
from io import StringIO
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np

from dmray.errors import EngineError
from dmray.rollout.engine import Simulator, Step, check_sizes
from dmray.tasks import Task


class Space(Protocol):
    """The part of a gym space that is used here."""

    shape: tuple[int, ...]


class OldEnvironment(Protocol):
    """gym's interface before 0.26, with no time limit around it: `done` is the task's own end."""

    observation_space: Space
    action_space: Space

    def seed(self, seed: int) -> object: ...
    def reset(self) -> np.ndarray: ...
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, Mapping[str, object]]: ...
    def close(self) -> None: ...


def bullet_environment(task: Task) -> OldEnvironment:
    """d4rl's environment `task.env_id` in a simulation of its own (29 MB), which `close` frees.

    It has been reset once. Before the first `reset` the floor is missing among the parts whose mean position the
    reward is computed from, so the first step of the first episode would have another reward than in all later ones.
    After it, `seed` and `reset` restore everything (the tests check it, bit for bit).

    Raises:
        EngineError: a package is missing, or d4rl does not know the id.
    """
    with _quiet():
        gym, pybullet = _packages(task)
        try:
            environment: Any = gym.make(task.env_id, disable_env_checker=True).unwrapped
        except gym.error.Error as unknown:
            raise EngineError(f"{task.name}: d4rl has no environment '{task.env_id}': {unknown}") from unknown
        simulated = environment.wrapped_env
        _connect(simulated, pybullet)
        environment.close = simulated.close  # d4rl's wrapper, which rescales actions, does not pass it on
        environment.seed(0)
        environment.reset()
    return cast(OldEnvironment, environment)


class BulletEngine:
    """`VectorEngine` over one of d4rl's pybullet environments an episode; a task's `env_id` is d4rl's.

    `make` makes each environment; an episode must be decided by its seed and its actions alone.

    Raises:
        EngineError: see `bullet_environment`, or the environment's sizes are not the task's.
    """

    def __init__(
        self, task: Task, num_episodes: int, make: Callable[[Task], OldEnvironment] = bullet_environment
    ) -> None:
        self._environments = [make(task) for _ in range(num_episodes)]
        first = self._environments[0]
        check_sizes(task, first.observation_space.shape[0], first.action_space.shape[0])
        self._limit, self._horizon = task.action_limit, task.horizon
        self._elapsed = np.zeros(num_episodes, dtype=np.int64)

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `VectorEngine.reset`."""
        first = []
        for environment, seed in zip(self._environments, seeds, strict=True):
            environment.seed(seed)
            first.append(environment.reset())
        self._elapsed[:] = 0
        return np.stack(first).astype(np.float32)

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        """See `VectorEngine.step`."""
        pairs = zip(live.tolist(), np.clip(actions, -self._limit, self._limit), strict=True)
        stepped = [self._environments[row].step(action) for row, action in pairs]
        observations, rewards, done, _ = zip(*stepped, strict=True)
        self._elapsed[live] += 1
        ended = np.array(done, dtype=bool)
        return Step(
            observations=np.stack(observations).astype(np.float32),
            rewards=np.array(rewards, dtype=np.float64),
            terminated=ended,
            truncated=(self._elapsed[live] >= self._horizon) & ~ended,
        )

    def close(self) -> None:
        """Close every environment, once."""
        while self._environments:
            self._environments.pop().close()


class _Client:
    """pybullet's functions, bound to one simulation in this process.

    Used instead of pybullet_utils' client, which joins another program's simulation when it finds one in shared memory,
    prints on every connection, and binds a function again on every call (a tenth of a step's time).
    """

    def __init__(self, pybullet: ModuleType) -> None:
        self._pybullet = pybullet
        self._client = pybullet.connect(pybullet.DIRECT)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._pybullet, name)
        if isbuiltin(value):
            value = partial(value, physicsClientId=self._client)
        setattr(self, name, value)
        return value


def _connect(simulated: Any, pybullet: ModuleType) -> None:
    """Connect as `reset` of pybullet_envs does when there is no simulation yet."""
    client = _Client(pybullet)
    client.resetSimulation()
    client.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
    simulated._p, simulated.physicsClientId, simulated.ownsPhysicsClient = client, client._client, True


def _packages(task: Task) -> tuple[Any, ModuleType]:
    """gym, with d4rl's environments registered, and pybullet."""
    os.environ.setdefault("D4RL_SUPPRESS_IMPORT_ERROR", "1")  # the many parts of d4rl that need mujoco-py
    path = list(sys.path)
    try:
        import d4rl.gym_bullet  # noqa: F401  registers the ids; `import d4rl` would hide why it cannot
        import gym
        import pybullet
    except ImportError as missing:
        raise EngineError(
            f"{task.name}: the simulator of the {task.protocol} tasks cannot be imported ({missing}): "
            '"make bullet" installs it, see docs/bullet.md'
        ) from missing
    finally:
        sys.path[:] = path  # pybullet_envs adds its own folders, with modules named `agents` and the like
    return gym, pybullet


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings of gym and pybullet_envs that they are deprecated; gym prints one too."""
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield


SIMULATOR = Simulator(BulletEngine)  # no scene: these robots are pybullet's, which MuJoCo cannot draw
