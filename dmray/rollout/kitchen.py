"""D4RL's kitchen: a Franka arm that is paid once for each of four elements it brings to its goal.

Observation (60,): positions of the robot 9 and of objects 21, with D4RL's sensor noise, then the goal 30 (zeros but for
the four elements). Action: a velocity per joint in [-1, 1]. Reward: how many elements are reached for the first time in
the episode; done when all four are. An element is reached, as in D4RL, where its *observed* positions are less than .3
from its goal. The physics are envpool's FrankaKitchen, which agree with gymnasium-robotics' bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dmray.data import Subtask
from dmray.errors import EngineError
from dmray.registry import lookup
from dmray.rollout.engine import Step, check_sizes
from dmray.rollout.envpool_engine import EpisodePool
from dmray.tasks import Task
from dmray.tasks.kitchen_elements import ELEMENTS, KITCHEN_TASKS, REACHED_WITHIN

_ROBOT, _OBJECTS = slice(0, 9), slice(18, 39)  # of FrankaKitchen's 59 numbers; the rest are velocities
_POSITIONS = 30
_NOISE = {"robot_noise_ratio": 0.1, "object_noise_ratio": 0.1}  # D4RL's


def kitchen_subtasks(env_id: str) -> tuple[Subtask, ...]:
    """The four elements of a kitchen task ("complete", "partial", "mixed") as columns of its observation.

    Raises:
        EngineError: there is no such kitchen.
    """
    names = lookup("kitchen", env_id, KITCHEN_TASKS, EngineError)
    elements = [ELEMENTS[name] for name in names]
    return tuple(Subtask(each.name, each.indices, each.goal, REACHED_WITHIN) for each in elements)


class KitchenEngine:
    """`VectorEngine` of the kitchen family; a task's `env_id` names its four elements."""

    def __init__(self, task: Task, num_episodes: int) -> None:
        self._subtasks = kitchen_subtasks(task.env_id)
        self._pool = EpisodePool(
            task,
            "FrankaKitchen-v1",
            num_episodes,
            {
                **_NOISE,
                "tasks_to_complete": [subtask.name for subtask in self._subtasks],
                "terminate_on_tasks_completed": False,  # arrivals are counted here
            },
        )
        check_sizes(task, 2 * _POSITIONS, self._pool.action_dim)
        self._goal = np.zeros(_POSITIONS)
        for subtask in self._subtasks:
            self._goal[list(subtask.columns)] = subtask.goal
        self._done = np.zeros((num_episodes, len(self._subtasks)), dtype=bool)
        self._elapsed = np.zeros(num_episodes, dtype=np.int64)
        self._horizon = task.horizon

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `VectorEngine.reset`."""
        self._done[:], self._elapsed[:] = False, 0
        return self._observed(self._pool.reset(seeds)["observation"]).astype(np.float32)

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        """See `VectorEngine.step`."""
        step = self._pool.step(np.clip(actions, -1.0, 1.0), live)
        observed = self._observed(step.observations["observation"])
        rewards = self._arrivals(observed, live)
        self._elapsed[live] += 1
        finished = self._done[live].all(axis=1)
        return Step(
            observations=observed.astype(np.float32),
            rewards=rewards,
            terminated=finished,
            truncated=(self._elapsed[live] >= self._horizon) & ~finished,
        )

    def close(self) -> None:
        """Let go of the pool."""
        self._pool.close()

    def _arrivals(self, observed: np.ndarray, live: np.ndarray) -> np.ndarray:
        """How many elements each row reaches for the first time, (L,) float64."""
        done = np.stack([subtask.done(observed) for subtask in self._subtasks], axis=1)
        new = done & ~self._done[live]
        self._done[live] |= done
        count: np.ndarray = new.sum(axis=1).astype(np.float64)
        return count

    def _observed(self, numbers: np.ndarray) -> np.ndarray:
        """D4RL's 60 numbers from FrankaKitchen's 59."""
        goals = np.broadcast_to(self._goal, (len(numbers), _POSITIONS))
        return np.hstack([numbers[:, _ROBOT], numbers[:, _OBJECTS], goals])
