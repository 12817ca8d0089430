"""Small data sets for the tests of this folder."""

from __future__ import annotations

import numpy as np

from dmray.datasets import Episodes


def episodes_of(lengths: list[int], seed: int = 0, rewards: list[float] | None = None) -> Episodes:
    """Episodes of the given lengths whose every observation is different (3 numbers), actions 2."""
    rng = np.random.default_rng(seed)
    count = sum(lengths)
    observations = np.arange(3 * count, dtype=np.float32).reshape(count, 3) + 1
    drawn = rng.integers(-2, 3, count) if rewards is None else np.array(rewards)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    actions = rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    return Episodes(observations, actions, drawn.astype(np.float32), starts)
