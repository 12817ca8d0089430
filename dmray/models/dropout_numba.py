"""Dropout for one CPU core: compiled loops draw the masks, with a key from torch's global RNG.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), which PyTorch
uses on GPUs. A number depends only on the key and on its place, so the backward pass draws the same mask again and no
mask is stored. Each call draws a new key: a seed gives the same masks, and a restored state of torch's RNG continues
with them.

Shapes: R rows, D numbers in a row. Each row begins with a new block of `BLOCK` numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmray.models.compiled import compiled
from dmray.models.lanes import FAST, INLINED

_COUNTERS = 16  # a block's numbers: four from each counter; enough of them for two vectors of AVX-512
BLOCK = 4 * _COUNTERS
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # added to the two halves of the key at each round
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
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


@njit(**INLINED)  # type: ignore[untyped-decorator]
def _round(state: Any) -> Any:
    """A round on (x0, x1, x2, x3, key_0, key_1). Only their low halves are used; the high halves may be anything."""
    x0, x1, x2, x3, key_0, key_1 = state
    product_0, product_1 = (x0 & _LOW) * _MULTIPLIER_0, (x2 & _LOW) * _MULTIPLIER_1
    x0, x2 = (product_1 >> _HALF) ^ x1 ^ key_0, (product_0 >> _HALF) ^ x3 ^ key_1
    return x0, product_1, x2, product_0, key_0 + _WEYL_0, key_1 + _WEYL_1


@njit(**INLINED)  # type: ignore[untyped-decorator]
def philox(counter: Any, stream: Any, key_0: Any, key_1: Any) -> Any:
    """Four numbers of 32 bits (in 64) for a counter of 64 bits and a stream of 64 bits."""
    state = counter, counter >> _HALF, stream, stream >> _HALF, key_0, key_1
    state = _round(_round(_round(_round(_round(state)))))  # LLVM does not vectorize a loop of ten
    x0, x1, x2, x3, _, _ = _round(_round(_round(_round(_round(state)))))
    return x0 & _LOW, x1 & _LOW, x2 & _LOW, x3 & _LOW


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


@njit(**FAST)  # type: ignore[untyped-decorator]
def factors_of_row(mask: Any, width: Any) -> Any:
    """A buffer for `draw_row`, in which nothing is dropped."""
    return np.full(blocks_of(width) * BLOCK, mask.scale)


@njit(**FAST)  # type: ignore[untyped-decorator]
def draw_row(mask: Any, row: Any, factors: Any) -> None:
    """Fill `factors` for a row, with a width for which `factors_of_row` made them."""
    if mask.threshold > 0:
        draw_factors(mask, row * (len(factors) // BLOCK), factors)


def numba_dropout(x: Tensor, rate: float) -> Tensor:
    """`torch.nn.functional.dropout` in training mode. CPU and float32 only; differentiable once; uses one thread."""
    (mask,) = new_masks(rate)
    if not mask.drops:
        return x
    y: Tensor = _Dropout.apply(x, mask)  # type: ignore[no-untyped-call]
    return y


def apply_mask(x: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """A copy of x (R, D) with the mask applied, and its sums over the rows (D,); without gradients."""
    out, sums = torch.empty(x.shape), x.new_zeros(x.shape[1])
    _drop(x.detach().contiguous().numpy(), mask, out.numpy(), sums.numpy())
    return out, sums


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, ctx.mask = inputs
        return apply_mask(x.flatten(0, -2), ctx.mask)[0].view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        return apply_mask(grad_y.flatten(0, -2), ctx.mask)[0].view(grad_y.shape), None


@compiled(**FAST, nogil=True)
def _drop(x: Any, mask: Any, out: Any, sums: Any) -> None:
    rows, width = x.shape
    factors = factors_of_row(mask, width)
    for r in range(rows):
        draw_row(mask, r, factors)
        for j in range(width):
            kept = x[r, j] * factors[j]
            out[r, j] = kept
            sums[j] += kept
