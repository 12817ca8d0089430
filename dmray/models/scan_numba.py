"""The selective scan as compiled vector loops for one CPU core: every number is touched once, in cache.

Shapes: B windows, L tokens, D channels, N state size. u, delta, z, y (B, L, D); B, C (B, L, N). Inside, arrays are flat
and channels are padded to whole vectors; the rates come in powers of two and, like the states, vector by vector:
(D / LANES, N, LANES).

The forward pass keeps the states at the start of each chunk of tokens only. The backward pass runs a chunk again, its
states and decays in the core's own cache: that is as fast as keeping every state, and a training step's working set
does not pass through memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmray.models.flat_rows import flat, rows_of
from dmray.models.lanes import FAST, FOLDED, LANES, LOG2_E, exp2, fold_into, load, sigmoid, softplus, spread, store

_CHUNK = 8  # tokens; the states and decays of 64 channels then fit the first-level caches of today's processors
_ZERO, _ONE, _LN_2 = np.float32(0), np.float32(1), np.float32(0.693147180559945309)


def numba_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """See `dmray.models.selective_scan.Scan`. CPU and float32 only; differentiable once; uses one thread."""
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    assert all(x.dtype == torch.float32 and x.device.type == "cpu" for x in inputs), "numba scans float32 on a CPU"
    missing = -u.shape[2] % LANES
    if missing:
        u, delta, D, z, delta_bias = (F.pad(x, (0, missing)) for x in (u, delta, D, z, delta_bias))
        A = F.pad(A, (0, 0, 0, missing))
    y: Tensor = _Compiled.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus)  # type: ignore[no-untyped-call]
    return y[..., : y.shape[2] - missing] if missing else y


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        u, delta, A, B, C, D, z, bias, soft = inputs
        windows, length, channels = u.shape
        keep = any(ctx.needs_input_grad)
        kept = (u, delta, _vector_by_vector(A * LOG2_E), B, C, D, z, bias)
        y = torch.empty(u.shape)
        states = torch.empty(windows * -(-length // _CHUNK) * A.numel() if keep else 0)
        sizes = (windows, length, channels, A.shape[1])
        _forward(sizes, *_arrays(*kept), soft, keep, flat(y), flat(states))
        ctx.soft, ctx.sizes = soft, sizes
        ctx.save_for_backward(*kept, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        *kept, states = ctx.saved_tensors
        # in the inputs' order; what sums over windows and tokens starts at zero
        grads = [torch.zeros(x.shape) if place in (2, 5, 7) else torch.empty(x.shape) for place, x in enumerate(kept)]
        _backward(ctx.sizes, rows_of(grad_y), *_arrays(*kept), flat(states), ctx.soft, *(flat(x) for x in grads))
        grads[2] = grads[2].transpose(1, 2).reshape(ctx.sizes[2], ctx.sizes[3])
        return *(x if needed else None for x, needed in zip(grads, ctx.needs_input_grad, strict=False)), None


def _vector_by_vector(A: Tensor) -> Tensor:
    """(D, N) as (D / LANES, N, LANES)."""
    return A.view(-1, LANES, A.shape[1]).transpose(1, 2).contiguous()


def _arrays(*kept: Tensor) -> tuple[Any, ...]:
    return tuple(rows_of(x) if place in (0, 1, 3, 4, 6) else flat(x) for place, x in enumerate(kept))


@njit(**FAST, nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _forward(
    sizes: Any, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, soft: Any,
    keep: Any, y: Any, states: Any,
) -> None:  # fmt: skip
    windows, length, channels, size = sizes
    state = np.empty(size * LANES, np.float32)
    for b in range(windows):
        for first in range(0, channels, LANES):
            skip, shift = load(D, first), load(bias, first)
            state[:] = _ZERO
            for t in range(length):
                token = b * length + t
                row = token * channels + first
                if keep and t % _CHUNK == 0:
                    kept = (b * ((length - 1) // _CHUNK + 1) + t // _CHUNK) * channels * size + first * size
                    for n in range(size):
                        store(states, kept + n * LANES, load(state, n * LANES))
                x = load(u.numbers, token * u.stride + first)
                step = load(delta.numbers, token * delta.stride + first) + shift
                if soft:
                    step = softplus(step)
                entering, out = step * x, skip * x
                for n in range(size):
                    decay = exp2(step * load(A, first * size + n * LANES))
                    h = decay * load(state, n * LANES) + entering * B.numbers[token * B.stride + n]
                    store(state, n * LANES, h)
                    out = out + h * C.numbers[token * C.stride + n]
                gate = load(z.numbers, token * z.stride + first)
                store(y, row, out * gate * sigmoid(gate))


@njit(**FAST, nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _backward(
    sizes: Any, grad_y: Any, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any,
    states: Any, soft: Any,
    grad_u: Any, grad_delta: Any, grad_A: Any, grad_B: Any, grad_C: Any, grad_D: Any, grad_z: Any, grad_bias: Any,
) -> None:  # fmt: skip
    windows, length, channels, size = sizes
    block, chunks = size * LANES, (length - 1) // _CHUNK + 1
    decays, inside = np.empty(_CHUNK * block, np.float32), np.empty((_CHUNK + 1) * block, np.float32)
    steps, grads = np.empty(_CHUNK * LANES, np.float32), np.empty(_CHUNK * LANES, np.float32)
    sums_B, sums_C = np.empty(_CHUNK * size * FOLDED, np.float32), np.empty(_CHUNK * size * FOLDED, np.float32)
    carried = np.empty(channels * size, np.float32)  # gradient of the loss in the state, through later steps
    for b in range(windows):
        carried[:] = _ZERO
        for chunk in range(chunks - 1, -1, -1):
            start = b * length + chunk * _CHUNK
            tokens = min(_CHUNK, length - chunk * _CHUNK)
            sums_B[:] = _ZERO
            sums_C[:] = _ZERO
            for first in range(0, channels, LANES):
                skip, shift = load(D, first), load(bias, first)
                kept = (b * chunks + chunk) * channels * size + first * size
                for n in range(size):
                    store(inside, n * LANES, load(states, kept + n * LANES))
                for k in range(tokens):
                    token = start + k
                    row = token * channels + first
                    step = load(delta.numbers, token * delta.stride + first) + shift
                    if soft:
                        step = softplus(step)
                    x = load(u.numbers, token * u.stride + first)
                    entering, out = step * x, skip * x
                    for n in range(size):
                        place = k * block + n * LANES
                        decay = exp2(step * load(A, first * size + n * LANES))
                        store(decays, place, decay)
                        h = decay * load(inside, place) + entering * B.numbers[token * B.stride + n]
                        store(inside, place + block, h)
                        out = out + h * C.numbers[token * C.stride + n]
                    gate, grad = load(z.numbers, token * z.stride + first), load(grad_y.numbers, token * grad_y.stride + first)
                    opened = sigmoid(gate)
                    store(grad_z, row, grad * out * opened * (gate * (_ONE - opened) + _ONE))
                    store(grads, k * LANES, grad * gate * opened)
                    store(steps, k * LANES, step)
                for k in range(tokens - 1, -1, -1):
                    token = start + k
                    row = token * channels + first
                    step, grad, x = load(steps, k * LANES), load(grads, k * LANES), load(u.numbers, token * u.stride + first)
                    entering = step * x
                    grad_entering, grad_step = spread(_ZERO), spread(_ZERO)
                    for n in range(size):
                        place, fold = k * block + n * LANES, (k * size + n) * FOLDED
                        across = first * size + n * LANES
                        g = load(carried, across) + grad * C.numbers[token * C.stride + n]
                        fold_into(sums_C, fold, grad * load(inside, place + block))
                        fold_into(sums_B, fold, g * entering)
                        grad_entering = grad_entering + g * B.numbers[token * B.stride + n]
                        g = g * load(decays, place)
                        store(carried, across, g)
                        g = g * load(inside, place)
                        grad_step = grad_step + g * load(A, across)
                        store(grad_A, across, load(grad_A, across) + g * step)
                    store(grad_u, row, grad_entering * step + grad * skip)
                    grad_step = grad_step * _LN_2 + grad_entering * x
                    if soft:
                        grad_step = grad_step * sigmoid(load(delta.numbers, token * delta.stride + first) + shift)
                    store(grad_delta, row, grad_step)
                    store(grad_bias, first, load(grad_bias, first) + grad_step)
                    store(grad_D, first, load(grad_D, first) + grad * x)
            for place in range(tokens * size):
                sum_B, sum_C = _ZERO, _ZERO
                for part in range(place * FOLDED, (place + 1) * FOLDED):
                    sum_B += sums_B[part]
                    sum_C += sums_C[part]
                grad_B[start * size + place], grad_C[start * size + place] = sum_B, sum_C
