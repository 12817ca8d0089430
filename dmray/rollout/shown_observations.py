"""Compare a data set's observations with those that its task's simulator shows.

Policies normalize observations by the mean and deviation of the data set. A number that is far from its mean, measured
in deviations, would outweigh all others. The usual cause is a number that never changes in the file.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np

from dmray.datasets import Episodes, Statistics
from dmray.rollout.engine import VectorEngine
from dmray.rollout.simulator_registry import make_engine
from dmray.tasks import Task

_FAR = 100.0  # deviations; ten times the distance for files of the right task
_STEPS = 20
_CONSTANT = 1e-5  # a deviation up to this is that of a number that does not change


@dataclass(frozen=True)
class FurthestNumber:
    """The number of an observation that is furthest from its mean in the file, and what the simulator shows of it."""

    index: int
    mean: float
    std: float
    lowest: float
    highest: float
    deviations: float
    env_id: str

    @property
    def is_far(self) -> bool:
        return self.deviations > _FAR

    def __str__(self) -> str:
        return (
            f"observation number {self.index} (from 0) is {self.mean:.4g} ± {self.std:.1g} in the file, but "
            f"{self.lowest:.4g} to {self.highest:.4g} in {self.env_id}: up to {self.deviations:z,.0f} deviations away"
        )


def furthest_number(task: Task, episodes: Episodes, num_starts: int) -> FurthestNumber:
    """The furthest at `num_starts` starts; for numbers that never change in the file also in 20 random steps.

    Raises:
        EngineError: the task has no simulator here.
    """
    statistics = Statistics.of(episodes)
    mean, std = statistics.mean.astype(np.float64), statistics.std.astype(np.float64)
    constant = std < _CONSTANT
    with closing(make_engine(task, num_starts)) as engine:
        shown = engine.reset(range(num_starts))
        lowest, highest = shown.min(axis=0), shown.max(axis=0)
        if constant.any():
            later = _random_steps(engine, task, num_starts)
            lowest = np.where(constant, np.minimum(lowest, later.min(axis=0)), lowest)
            highest = np.where(constant, np.maximum(highest, later.max(axis=0)), highest)
    distance = np.maximum(np.abs(lowest - mean), np.abs(highest - mean)) / std
    worst = int(distance.argmax())
    return FurthestNumber(
        index=worst,
        mean=float(mean[worst]),
        std=float(std[worst]),
        lowest=float(lowest[worst]),
        highest=float(highest[worst]),
        deviations=float(distance[worst]),
        env_id=task.env_id,
    )


def _random_steps(engine: VectorEngine, task: Task, num_starts: int) -> np.ndarray:
    """What `engine` shows in the next steps, (rows, S)."""
    rng, live = np.random.default_rng(0), np.arange(num_starts)
    shown = []
    for _ in range(_STEPS):
        if live.size:
            step = engine.step(rng.uniform(-task.action_limit, task.action_limit, (len(live), task.action_dim)), live)
            shown.append(step.observations)
            live = live[~(step.terminated | step.truncated)]
    return np.concatenate(shown)
