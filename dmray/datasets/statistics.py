"""Means and standard deviations, by which states and subgoals are normalized."""

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
        return cls._over(len(states), lambda block: states[block].astype(np.float64))

    @classmethod
    def of_differences(cls, episodes: Episodes) -> Statistics:
        """Of the differences of the labelled subgoals from the states that they are the subgoals of, as `of`."""
        states, labels = episodes.observations, subgoal_rows(episodes)
        return cls._over(len(states), lambda block: states[labels[block]].astype(np.float64) - states[block])

    @classmethod
    def _over(cls, rows: int, values: Callable[[slice], np.ndarray]) -> Statistics:
        """`values`: gives those of a block of rows, (block, S) float64."""
        blocks = [slice(start, min(start + _BLOCK_ROWS, rows)) for start in range(0, rows, _BLOCK_ROWS)]
        mean = np.sum([values(block).sum(axis=0) for block in blocks], axis=0) / rows
        variance = np.sum([np.square(values(block) - mean).sum(axis=0) for block in blocks], axis=0) / rows
        return cls(mean.astype(np.float32), (np.sqrt(variance) + _LEAST_STD).astype(np.float32))
