"""Mean and standard deviation, by which states are normalized, and the deviation of actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dmray.datasets.episodes import Episodes

_BLOCK_ROWS = 65_536  # no float64 copy of the whole data set
_LEAST_STD = 1e-6  # as in the authors' code: a constant dimension becomes zero, not a division by zero


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each observation dimension over all transitions, (S,) float32."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, episodes: Episodes) -> Statistics:
        """Computed in float64, block by block; 1e-6 is added to the deviation."""
        mean = _mean_of(episodes.observations, lambda block: block)
        variance = _mean_of(episodes.observations, lambda block: np.square(block - mean))
        return cls(mean.astype(np.float32), (np.sqrt(variance) + _LEAST_STD).astype(np.float32))


def action_deviations(episodes: Episodes) -> tuple[float, ...]:
    """The standard deviation of each action dimension over all transitions, 0 where it is constant."""
    mean = _mean_of(episodes.actions, lambda block: block)
    variance = _mean_of(episodes.actions, lambda block: np.square(block - mean))
    return tuple(np.sqrt(variance).tolist())


def _mean_of(rows: np.ndarray, value: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Mean of `value` over `rows` (N, S), (S,) float64."""
    blocks = (rows[start : start + _BLOCK_ROWS].astype(np.float64) for start in range(0, len(rows), _BLOCK_ROWS))
    mean: np.ndarray = np.sum([value(block).sum(axis=0) for block in blocks], axis=0) / len(rows)
    return mean
