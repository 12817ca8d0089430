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
    windows, length, channels = x.shape
    x = x.detach()
    stride = x.stride(1) if length > 1 else x.stride(0)
    even = x.stride(2) == 1 and stride >= channels and (windows == 1 or x.stride(0) == length * stride)
    if not even:
        x, stride = x.contiguous(), channels
    return Rows(x.as_strided(((windows * length - 1) * stride + channels,), (1,)).numpy(), stride)


def flat(x: Tensor) -> np.ndarray:
    """All elements of x as a flat array; a view if x is contiguous."""
    numbers: np.ndarray = x.detach().reshape(-1).numpy()
    return numbers
