from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from dmray.models import lanes
from dmray.models.lanes import FAST, LANES, exp2, load, store


@pytest.mark.parametrize("by_instruction", [False, True])
def test_powers_of_two_are_right_on_processors_with_and_without_the_instruction_that_scales(
    monkeypatch: pytest.MonkeyPatch, by_instruction: bool
) -> None:
    if by_instruction and not lanes._AVX512:
        pytest.skip("this processor does not have it")
    monkeypatch.setattr(lanes, "_AVX512", by_instruction)

    @njit(**FAST)
    def powers(x: np.ndarray, y: np.ndarray) -> None:
        for first in range(0, len(x), LANES):
            store(y, first, exp2(load(x, first)))

    draw = np.random.default_rng(0)
    x = np.concatenate([draw.uniform(-125, 127, 64 * LANES), draw.uniform(-1, 1, 64 * LANES)]).astype(np.float32)
    y = np.empty_like(x)
    powers(x, y)
    assert np.abs(y / np.exp2(x.astype(np.float64)) - 1).max() < 3e-7
    edges = np.full(LANES, np.nan, np.float32)
    edges[:4] = [-1000, 1000, 0, -150]
    y = np.empty_like(edges)
    powers(edges, y)
    assert y[:4].tolist() == [0, np.inf, 1, 0]
    assert np.isnan(y[4:]).all()
