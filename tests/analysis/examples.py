"""Small data sets for the tests of this folder."""

from __future__ import annotations

import numpy as np

from dmray.datasets import Episodes


def walk(*lengths: int, step: float = 1.0) -> Episodes:
    """Episodes whose state is the number of the timestep in each of three dimensions; the reward is at the end."""
    numbers = np.concatenate([np.arange(length) for length in lengths]).astype(np.float32) * step
    rewards = np.concatenate([np.eye(1, length, length - 2)[0] for length in lengths]).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Episodes(np.repeat(numbers[:, None], 3, axis=1), np.zeros((sum(lengths), 2), np.float32), rewards, starts)
