"""Locomotion through gymnasium's environments, one Python object an episode: slow, but it can be put into a state.

D4RL's v2 data sets agree with the v4 environments. v5 drops the +1 on Hopper's and Walker2d's terminal step, changes
Walker2d's friction, and its Ant is another task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from dmray.errors import EngineError
from dmray.rollout.engine import Scene, Simulator, Step, check_sizes
from dmray.tasks import Task


class GymnasiumEngine:
    """`VectorEngine` over one gymnasium environment an episode; a task's `env_id` is gymnasium's.

    Raises:
        EngineError: gymnasium does not know the id, or its sizes are not the task's.
    """

    def __init__(self, task: Task, num_episodes: int) -> None:
        self._environments = [_environment(task) for _ in range(num_episodes)]
        observed, acted = self._environments[0].observation_space, self._environments[0].action_space
        assert isinstance(observed, Box)
        assert isinstance(acted, Box)
        check_sizes(task, observed.shape[0], acted.shape[0])
        self._low, self._high = acted.low, acted.high
        self._elapsed = np.zeros(num_episodes, dtype=np.int64)
        self._horizon = task.horizon

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `VectorEngine.reset`."""
        pairs = zip(self._environments, seeds, strict=True)
        first = [environment.reset(seed=seed)[0] for environment, seed in pairs]
        self._elapsed[:] = 0
        return np.stack(first).astype(np.float32)

    def place(self, observations: np.ndarray) -> np.ndarray:
        """See `PlaceableEngine.place`.

        The positions that an observation leaves out (x, or x and y) are zero: nothing that is observed depends on them.
        """
        for environment, observation in zip(self._environments, observations, strict=True):
            model: Any = environment
            hidden = np.zeros(model.model.nq + model.model.nv - len(observation))
            state = np.concatenate([hidden, observation])
            model.data.qacc_warmstart[:] = 0
            model.set_state(state[: model.model.nq], state[model.model.nq :])
        self._elapsed[:] = 0
        return observations.astype(np.float32)

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        """See `VectorEngine.step`."""
        clipped = np.clip(actions, self._low, self._high)
        pairs = zip(live.tolist(), clipped, strict=True)
        stepped = [self._environments[row].step(action) for row, action in pairs]
        observations, rewards, terminated, _, _ = zip(*stepped, strict=True)
        self._elapsed[live] += 1
        ended = np.array(terminated, dtype=bool)
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


def _environment(task: Task) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """The bare environment: no wrapper counts steps or checks values, the engine knows the horizon.

    Made from its registry entry: when made by its name, gymnasium would warn that v5 is newer.
    """
    try:
        return gymnasium.make(gymnasium.spec(task.env_id), disable_env_checker=True).unwrapped
    except gymnasium.error.Error as unknown:
        raise EngineError(f"{task.name}: gymnasium has no environment '{task.env_id}': {unknown}") from unknown


def robot_scene(task: Task, observations: np.ndarray) -> Scene:
    """Positions that are not observed (x, or x and y) are summed up from the observed speeds along them."""
    bare: Any = gymnasium.make(gymnasium.spec(task.env_id), disable_env_checker=True).unwrapped
    shown = dict(task.observation_parts)["velocities"]
    hidden = bare.model.nq + shown - sum(size for _, size in task.observation_parts[:2])
    positions = observations[:, : bare.model.nq - hidden]
    speeds = observations[:, bare.model.nq - hidden : bare.model.nq]
    return Scene(bare.model, np.hstack([np.cumsum(speeds, axis=0) * bare.dt, positions]), 0, bare.dt)


SIMULATOR = Simulator(GymnasiumEngine, scene=robot_scene)
