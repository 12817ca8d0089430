"""Dropout whose masks are drawn in compiled loops: a counter-based generator, keyed by torch's global RNG.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), which PyTorch
uses on GPUs. A number depends on a key and on the number's place only, so the backward pass draws the same mask again
and no mask is stored. Each call takes a new key from torch's global RNG: a seed gives the same masks, and a restored
state of that RNG continues with them.

Shapes: R rows, D numbers in a row. Each row begins at a new block of `BLOCK` numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmray.models.compiled import compiled
from dmray.models.lanes import FAST

_COUNTERS = 16  # a block's numbers: four from each counter; enough of them for two vectors of AVX-512
BLOCK = 4 * _COUNTERS
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # added to the two halves of the key at each round
_LOW, _HALF, _ROUNDS = np.uint64(0xFFFFFFFF), np.uint64(32), 10
_ZERO = np.float32(0)


class Mask(NamedTuple):
    """What a mask is drawn from. A number of 32 random bits below `threshold` drops an element; others are scaled."""

    key: tuple[np.uint64, np.uint64]  # 32 bits each
    stream: np.uint64  # tells the masks of one key apart; 32 bits
    threshold: np.uint64
    scale: np.float32

    @property
    def drops(self) -> bool:
        return bool(self.threshold)


def new_masks(*rates: float) -> tuple[Mask, ...]:
    """A mask for each probability of a drop (0 <= rate < 1), which is exact to 2^-32.

    Draws a key from torch's global RNG if any element can be dropped.
    """
    first, second = torch.randint(1 << 32, (2,)).tolist() if any(rates) else (0, 0)
    key = np.uint64(first), np.uint64(second)
    return tuple(
        Mask(key, np.uint64(stream), np.uint64(round(rate * 2**32)), np.float32(1 / (1 - rate)))
        for stream, rate in enumerate(rates)
    )


@njit(**FAST)  # type: ignore[untyped-decorator]
def philox(counter: Any, stream: Any, key_0: Any, key_1: Any) -> Any:
    """Four numbers of 32 bits (in 64) for a counter of 64 bits and a stream of 64 bits."""
    x0, x1, x2, x3 = counter & _LOW, counter >> _HALF, stream & _LOW, stream >> _HALF
    for _ in range(_ROUNDS):
        product_0, product_1 = x0 * _MULTIPLIER_0, x2 * _MULTIPLIER_1
        x0, x2 = (product_1 >> _HALF) ^ x1 ^ key_0, (product_0 >> _HALF) ^ x3 ^ key_1
        x1, x3 = product_1 & _LOW, product_0 & _LOW
        key_0, key_1 = (key_0 + _WEYL_0) & _LOW, (key_1 + _WEYL_1) & _LOW
    return x0, x1, x2, x3


@njit(**FAST)  # type: ignore[untyped-decorator]
def draw_factors(mask: Any, first_block: Any, factors: Any) -> None:
    """Fill `factors`, whole blocks, with 0 where the mask drops and its scale elsewhere."""
    threshold, scale = mask.threshold, mask.scale
    for block in range(len(factors) // BLOCK):
        start = np.uint64(first_block + block) * np.uint64(_COUNTERS)
        part = factors[block * BLOCK : (block + 1) * BLOCK]
        for place in range(_COUNTERS):
            x0, x1, x2, x3 = philox(start + np.uint64(place), mask.stream, mask.key[0], mask.key[1])
            part[place] = scale if x0 >= threshold else _ZERO
            part[_COUNTERS + place] = scale if x1 >= threshold else _ZERO
            part[2 * _COUNTERS + place] = scale if x2 >= threshold else _ZERO
            part[3 * _COUNTERS + place] = scale if x3 >= threshold else _ZERO


@njit(**FAST)  # type: ignore[untyped-decorator]
def blocks_of(numbers: Any) -> Any:
    """The number of blocks that hold so many numbers."""
    return (numbers - 1) // BLOCK + 1


@compiled(**FAST, nogil=True)
def drop(x: Any, mask: Any, out: Any, sums: Any) -> None:
    """out (R, D) = x with the mask applied; adds its sums over the rows to `sums` (D,)."""
    rows, width = x.shape
    blocks = blocks_of(width)
    factors = np.full(blocks * BLOCK, mask.scale)
    for r in range(rows):
        if mask.threshold > 0:
            draw_factors(mask, r * blocks, factors)
        for j in range(width):
            dropped = x[r, j] * factors[j]
            out[r, j] = dropped
            sums[j] += dropped


def numba_dropout(x: Tensor, rate: float) -> Tensor:
    """`torch.nn.functional.dropout` in training mode. CPU and float32 only; differentiable once; uses one thread."""
    (mask,) = new_masks(rate)
    if not mask.drops:
        return x
    y: Tensor = _Dropout.apply(x, mask)  # type: ignore[no-untyped-call]
    return y


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, ctx.mask = inputs
        return _dropped(x, ctx.mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        return _dropped(grad_y, ctx.mask), None


def _dropped(x: Tensor, mask: Mask) -> Tensor:
    rows, out = x.detach().reshape(-1, x.shape[-1]).contiguous(), torch.empty(x.shape)
    drop(rows.numpy(), mask, out.view(rows.shape).numpy(), np.zeros(rows.shape[1], np.float32))
    return out
