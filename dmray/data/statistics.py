"""What states are z-scored with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dmray.data.episodes import Episodes

_LEAST_STD = 1e-6  # as in the authors' code: a constant dimension becomes zero, not a division by zero


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each observation dimension over all transitions, (S,) float32."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, episodes: Episodes) -> Statistics:
        """Computed in float64; 1e-6 is added to the deviation."""
        mean = episodes.observations.mean(axis=0, dtype=np.float64)
        std = episodes.observations.std(axis=0, dtype=np.float64) + _LEAST_STD
        return cls(mean.astype(np.float32), std.astype(np.float32))
