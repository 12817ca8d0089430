"""The selective scan as compiled vector loops for one CPU core.

Shapes: B windows, L tokens, D channels, N state size. u, delta, z, y (B, L, D); B, C (B, L, N). Inside, arrays are flat
and channels are padded to whole vectors. The rates are for powers of two. Rates and states have the layout
(D / LANES, N, LANES).

The forward pass stores only the states at the start of each chunk of tokens. The backward pass recomputes a chunk, with
its states and decays in the core's cache. This is as fast as storing all states and needs much less memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmray.models.compiled import compiled
from dmray.models.flat_rows import Rows, flat, rows_in, rows_of
from dmray.models.lanes import (
    FAST,
    FOLDED,
    INLINED,
    LANES,
    LOG2_E,
    at,
    exp2,
    fold_into,
    load,
    put,
    sigmoid,
    softplus,
    spread,
    store,
)

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
    """See `dmray.models.scan_reference.Scan`. CPU and float32 only; differentiable once; uses one thread."""
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    assert all(x.dtype == torch.float32 and x.device.type == "cpu" for x in inputs), "needs float32 on a CPU"
    missing = -u.shape[2] % LANES
    if missing:
        u, delta, D, z, delta_bias = (F.pad(x, (0, missing)) for x in (u, delta, D, z, delta_bias))
        A = F.pad(A, (0, 0, 0, missing))
    y: Tensor = _Compiled.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus)  # type: ignore[no-untyped-call]
    return y[..., : y.shape[2] - missing] if missing else y


class _Layer(NamedTuple):
    """The inputs of the scan in the form that the loops read."""

    sizes: tuple[int, int, int, int]  # windows, length, channels, states
    u: Rows
    delta: Rows
    A: np.ndarray
    B: Rows
    C: Rows
    D: np.ndarray
    z: Rows
    bias: np.ndarray
    soft: bool


class _Gradients(NamedTuple):
    """Where the gradients of the inputs go. Those of A, D and bias are added to what is there."""

    u: Rows
    delta: Rows
    A: np.ndarray
    B: Rows
    C: Rows
    D: np.ndarray
    z: Rows
    bias: np.ndarray


class _Scratch(NamedTuple):
    """Buffers for one chunk of tokens and `LANES` channels; `sums_*` and `carried` are for all channels."""

    decays: np.ndarray
    states: np.ndarray  # before each token, and after the last
    steps: np.ndarray
    grads: np.ndarray  # of the loss with respect to the gate's input
    sums_in: np.ndarray  # of grads.B, in FOLDED parts
    sums_out: np.ndarray  # of grads.C
    carried: np.ndarray  # gradient of the loss with respect to the state, through later steps


def scan_forward(inputs: Sequence[Tensor], soft: bool, keep: bool) -> tuple[Tensor, Tensor]:
    """y (B, L, D), and the states for `scan_backward` if it is to `keep` them.

    `inputs`: u, delta, the rates of `rates_for_scan`, B, C, D, z, delta_bias; the channels are a multiple of `LANES`.
    """
    u, rates = inputs[0], inputs[2]
    y = torch.empty(u.shape)
    states = torch.empty(u.shape[0] * -(-u.shape[1] // _CHUNK) * rates.numel() if keep else 0)
    state = flat(torch.empty(rates.shape[1] * LANES))
    _forward(_layer(inputs, soft), keep, state, flat(y), flat(states))
    return y, states


def scan_backward(
    inputs: Sequence[Tensor], soft: bool, states: Tensor, grad_y: Tensor, grads: Sequence[Tensor]
) -> None:
    """Write the gradients of `inputs` into `grads`; those of the rates, D and delta_bias are added to what is there.

    The gradient of the rates is that of A, in the layout of the rates.
    """
    layer = _layer(inputs, soft)
    u, delta, rates, B, C, D, z, bias = grads
    into = _Gradients(rows_in(u), rows_in(delta), flat(rates), rows_in(B), rows_in(C), flat(D), rows_in(z), flat(bias))
    _backward(layer, _scratch(*layer.sizes[2:]), flat(states), rows_of(grad_y), into)


def rates_for_scan(A: Tensor) -> Tensor:
    """A (D, N) for powers of two, as (D / LANES, N, LANES)."""
    return (A * float(LOG2_E)).view(-1, LANES, A.shape[1]).transpose(1, 2).contiguous()


def rates_from_scan(rates: Tensor) -> Tensor:
    """The layout of A (D, N) for the layout of `rates_for_scan`."""
    return rates.transpose(1, 2).flatten(0, 1)


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        u, delta, A, B, C, D, z, bias, ctx.soft = inputs
        kept = (u, delta, rates_for_scan(A), B, C, D, z, bias)
        y, states = scan_forward(kept, ctx.soft, any(ctx.needs_input_grad))
        ctx.save_for_backward(*kept, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        *kept, states = ctx.saved_tensors
        grads = [torch.zeros(x.shape) if place in (2, 5, 7) else torch.empty(x.shape) for place, x in enumerate(kept)]
        scan_backward(kept, ctx.soft, states, grad_y, grads)
        grads[2] = rates_from_scan(grads[2])
        return *(x if needed else None for x, needed in zip(grads, ctx.needs_input_grad, strict=False)), None


def _layer(kept: Sequence[Tensor], soft: bool) -> _Layer:
    u, delta, A, B, C, D, z, bias = kept
    sizes = (*u.shape, B.shape[2])
    return _Layer(
        sizes, rows_of(u), rows_of(delta), flat(A), rows_of(B), rows_of(C), flat(D), rows_of(z), flat(bias), soft
    )


def _scratch(channels: int, size: int) -> _Scratch:
    """From torch, whose memory begins at a cache line."""
    block = size * LANES
    numbers = {
        "decays": _CHUNK * block,
        "states": (_CHUNK + 1) * block,
        "steps": _CHUNK * LANES,
        "grads": _CHUNK * LANES,
        "sums_in": _CHUNK * size * FOLDED,
        "sums_out": _CHUNK * size * FOLDED,
        "carried": channels * size,
    }
    return _Scratch(**{name: flat(torch.empty(count)) for name, count in numbers.items()})


@njit(**INLINED)  # type: ignore[untyped-decorator]
def _step(layer: Any, token: Any, first: Any) -> Any:
    step = at(layer.delta, token, first) + load(layer.bias, first)
    if layer.soft:
        step = softplus(step)
    return step


@compiled(**FAST, nogil=True)
def _forward(layer: Any, keep: Any, state: Any, y: Any, states: Any) -> None:
    windows, length, channels, size = layer.sizes
    B, C = layer.B, layer.C
    chunks = (length - 1) // _CHUNK + 1
    for b in range(windows):
        for first in range(0, channels, LANES):
            state[:] = _ZERO
            for t in range(length):
                token = b * length + t
                if keep and t % _CHUNK == 0:
                    kept = ((b * chunks + t // _CHUNK) * channels + first) * size
                    for n in range(size):
                        store(states, kept + n * LANES, load(state, n * LANES))
                x, step = at(layer.u, token, first), _step(layer, token, first)
                entering, out = step * x, load(layer.D, first) * x
                for n in range(size):
                    decay = exp2(step * load(layer.A, first * size + n * LANES))
                    h = decay * load(state, n * LANES) + entering * B.numbers[token * B.stride + n]
                    store(state, n * LANES, h)
                    out = out + h * C.numbers[token * C.stride + n]
                gate = at(layer.z, token, first)
                store(y, token * channels + first, out * gate * sigmoid(gate))


@compiled(**FAST, nogil=True)
def _backward(layer: Any, scratch: Any, states: Any, grad_y: Any, grads: Any) -> None:
    windows, length, channels, size = layer.sizes
    chunks = (length - 1) // _CHUNK + 1
    for b in range(windows):
        scratch.carried[:] = _ZERO
        for chunk in range(chunks - 1, -1, -1):
            start = b * length + chunk * _CHUNK
            tokens = min(_CHUNK, length - chunk * _CHUNK)
            scratch.sums_in[:] = _ZERO
            scratch.sums_out[:] = _ZERO
            for first in range(0, channels, LANES):
                kept = ((b * chunks + chunk) * channels + first) * size
                for n in range(size):
                    store(scratch.states, n * LANES, load(states, kept + n * LANES))
                _recompute(layer, scratch, start, tokens, first, grad_y, grads)
                _back(layer, scratch, start, tokens, first, grads)
            for k in range(tokens):
                for n in range(size):
                    sum_B, sum_C, place = _ZERO, _ZERO, k * size + n
                    for part in range(place * FOLDED, (place + 1) * FOLDED):
                        sum_B += scratch.sums_in[part]
                        sum_C += scratch.sums_out[part]
                    grads.B.numbers[(start + k) * grads.B.stride + n] = sum_B
                    grads.C.numbers[(start + k) * grads.C.stride + n] = sum_C


@njit(**FAST, nogil=True)  # type: ignore[untyped-decorator]
def _recompute(
    layer: Any, scratch: Any, start: Any, tokens: Any, first: Any, grad_y: Any, grads: Any
) -> None:  # fmt: skip
    """Recompute a chunk's forward pass, store its states and decays, and go back through its gates."""
    size = layer.sizes[3]
    B, C, states, block = layer.B, layer.C, scratch.states, size * LANES
    for k in range(tokens):
        token = start + k
        x, step = at(layer.u, token, first), _step(layer, token, first)
        entering, out = step * x, load(layer.D, first) * x
        for n in range(size):
            place = k * block + n * LANES
            decay = exp2(step * load(layer.A, first * size + n * LANES))
            store(scratch.decays, place, decay)
            h = decay * load(states, place) + entering * B.numbers[token * B.stride + n]
            store(states, place + block, h)
            out = out + h * C.numbers[token * C.stride + n]
        gate, grad = at(layer.z, token, first), at(grad_y, token, first)
        opened = sigmoid(gate)
        put(grads.z, token, first, grad * out * opened * (gate * (_ONE - opened) + _ONE))
        store(scratch.grads, k * LANES, grad * gate * opened)
        store(scratch.steps, k * LANES, step)


@njit(**FAST, nogil=True)  # type: ignore[untyped-decorator]
def _back(layer: Any, scratch: Any, start: Any, tokens: Any, first: Any, grads: Any) -> None:
    """The backward pass through the recurrence of a chunk."""
    size = layer.sizes[3]
    B, C, states, carried, block = layer.B, layer.C, scratch.states, scratch.carried, size * LANES
    for k in range(tokens - 1, -1, -1):
        token = start + k
        x, step, grad = at(layer.u, token, first), load(scratch.steps, k * LANES), load(scratch.grads, k * LANES)
        entering, grad_entering, grad_step = step * x, spread(_ZERO), spread(_ZERO)
        for n in range(size):
            place, fold, across = k * block + n * LANES, (k * size + n) * FOLDED, first * size + n * LANES
            g = load(carried, across) + grad * C.numbers[token * C.stride + n]
            fold_into(scratch.sums_out, fold, grad * load(states, place + block))
            fold_into(scratch.sums_in, fold, g * entering)
            grad_entering = grad_entering + g * B.numbers[token * B.stride + n]
            g = g * load(scratch.decays, place)
            store(carried, across, g)
            g = g * load(states, place)
            grad_step = grad_step + g * load(layer.A, across)
            store(grads.A, across, load(grads.A, across) + g * step)
        put(grads.u, token, first, grad_entering * step + grad * load(layer.D, first))
        grad_step = grad_step * _LN_2 + grad_entering * x
        if layer.soft:
            grad_step = grad_step * sigmoid(at(layer.delta, token, first) + load(layer.bias, first))
        put(grads.delta, token, first, grad_step)
        store(grads.bias, first, load(grads.bias, first) + grad_step)
        store(grads.D, first, load(grads.D, first) + grad * x)
