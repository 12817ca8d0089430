"""Means and standard deviations, by which states and subgoals are normalized, and the deviation of actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dmray.datasets.episodes import Episodes
from dmray.datasets.subgoals import subgoal_rows

_BLOCK_ROWS = 65_536  # no float64 copy of the whole data set
_LEAST_STD = 1e-6  # as in the authors' code: a constant dimension becomes zero, not a division by zero


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each observation dimension, (S,) float32."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, episodes: Episodes) -> Statistics:
        """Of all states. Computed in float64, block by block; 1e-6 is added to the deviation."""
        states = episodes.observations
        return cls._with_least(*_moments(len(states), lambda block: states[block].astype(np.float64)))

    @classmethod
    def of_differences(cls, episodes: Episodes) -> Statistics:
        """Of the differences of the labelled subgoals from the states that they are the subgoals of, as `of`."""
        states, labels = episodes.observations, subgoal_rows(episodes)
        differences = _moments(len(states), lambda block: states[labels[block]].astype(np.float64) - states[block])
        return cls._with_least(*differences)

    @classmethod
    def _with_least(cls, mean: np.ndarray, std: np.ndarray) -> Statistics:
        return cls(mean.astype(np.float32), (std + _LEAST_STD).astype(np.float32))


def action_deviations(episodes: Episodes) -> tuple[float, ...]:
    """The standard deviation of each action dimension over all transitions, 0 where it is constant."""
    actions = episodes.actions
    _, std = _moments(len(actions), lambda block: actions[block].astype(np.float64))
    return tuple(std.tolist())


def _moments(rows: int, values: Callable[[slice], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (S,) float64 of what `values` gives for blocks of rows, (block, S) float64."""
    blocks = [slice(start, min(start + _BLOCK_ROWS, rows)) for start in range(0, rows, _BLOCK_ROWS)]
    mean: np.ndarray = np.sum([values(block).sum(axis=0) for block in blocks], axis=0) / rows
    variance = np.sum([np.square(values(block) - mean).sum(axis=0) for block in blocks], axis=0) / rows
    return mean, np.sqrt(variance)
