"""Convert tensors to the flat NumPy arrays that the compiled loops read, without a copy if the strides are regular."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Rows(NamedTuple):
    """A tensor (B, L, D) as a flat array: the element [b, t, d] is `numbers[(b * L + t) * stride + d]`."""

    numbers: np.ndarray  # (anything,) float32
    stride: int


def rows_of(x: Tensor) -> Rows:
    """The rows of x (B, L, D), float32 on a CPU. A view if possible, so that a slice of channels is not copied."""
    return rows_in(x if _is_even(x) else x.contiguous())


def rows_in(x: Tensor) -> Rows:
    """The rows of x (B, L, D), float32 on a CPU, to be written: always a view. The rows of x have one distance."""
    assert _is_even(x), "the strides are not regular"
    windows, length, channels = x.shape
    stride = _distance(x)
    return Rows(x.detach().as_strided(((windows * length - 1) * stride + channels,), (1,)).numpy(), stride)


def _distance(x: Tensor) -> int:
    return x.stride(1) if x.shape[1] > 1 else x.stride(0) if x.shape[0] > 1 else x.shape[2]


def _is_even(x: Tensor) -> bool:
    windows, length, channels = x.shape
    distance = _distance(x)
    across = windows == 1 or x.stride(0) == length * distance
    return (channels == 1 or x.stride(2) == 1) and distance >= channels and across


def flat(x: Tensor) -> np.ndarray:
    """All elements of x as a flat array; a view if x is contiguous."""
    numbers: np.ndarray = x.detach().reshape(-1).numpy()
    return numbers
