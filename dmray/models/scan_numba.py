"""The scan's recurrence as compiled loops for a CPU core: every number is touched once, in cache.

Shapes: B windows, L tokens, D channels, N state size. u, delta, y (B, L, D); B, C (B, L, N); the rates come transposed,
A (N, D), and the states are (B, L + 1, N, D) with a zero state first, so that the innermost loop runs over channels and
becomes vector instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd.function import once_differentiable

# Reordering sums is what lets them be vectors; not-a-number stays one, so that a diverged run is seen.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
# exp as 2^k * p(f) after Cephes' expf (S. Moshier): ln 2 in two parts, then the polynomial on |f| <= ln(2) / 2
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504088896341), np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_LOWEST, _HIGHEST = np.float32(-87), np.float32(88)


def numba_recurrence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y of the recurrence, (B, L, D). CPU and float32 only; differentiable once; uses one thread."""
    inputs = (u, delta, A, B, C)
    assert all(x.dtype == torch.float32 and x.device.type == "cpu" for x in inputs)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        y: Tensor = _Compiled.apply(*inputs)  # type: ignore[no-untyped-call]
        return y
    y = torch.empty(u.shape)
    _forward(*_arrays(u, delta, A.t(), B, C), y.numpy())
    return y


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        rates = A.t().contiguous()
        states = torch.empty(u.shape[0], u.shape[1] + 1, *rates.shape)
        y = torch.empty(u.shape)
        _forward_keeping_states(*_arrays(u, delta, rates, B, C), states.numpy(), y.numpy())
        ctx.save_for_backward(u, delta, rates, B, C, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        u, delta, rates, B, C, states = ctx.saved_tensors
        grads = [torch.empty(x.shape) for x in (u, delta)] + [torch.zeros(rates.shape)]
        grads += [torch.empty(x.shape) for x in (B, C)]
        _backward(*_arrays(grad_y, u, delta, rates, B, C, states), *(x.numpy() for x in grads))
        grad_u, grad_delta, grad_rates, grad_B, grad_C = grads
        return grad_u, grad_delta, grad_rates.t(), grad_B, grad_C


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(x.detach().contiguous().numpy() for x in tensors)


@intrinsic  # type: ignore[untyped-decorator]
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@njit(fastmath=_FAST, inline="always")  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Any:
    x = min(max(x, _LOWEST), _HIGHEST)
    k = np.floor(x * _LOG2_E + _HALF)
    f = x - k * _LN2_HIGH - k * _LN2_LOW
    p = ((((_P0 * f + _P1) * f + _P2) * f + _P3) * f + _P4) * f + _P5
    return (p * f * f + f + _ONE) * _float_of_bits((np.int32(k) + np.int32(127)) << np.int32(23))


@njit(fastmath=_FAST, nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _forward(u: Any, delta: Any, A: Any, B: Any, C: Any, y: Any) -> None:
    windows, length, channels = u.shape
    state = np.empty(A.shape, np.float32)
    entering = np.empty(channels, np.float32)
    for b in range(windows):
        state[:] = _ZERO
        for t in range(length):
            for d in range(channels):
                entering[d] = delta[b, t, d] * u[b, t, d]
                y[b, t, d] = _ZERO
            for n in range(A.shape[0]):
                B_n, C_n = B[b, t, n], C[b, t, n]
                for d in range(channels):
                    h = _exp(delta[b, t, d] * A[n, d]) * state[n, d] + entering[d] * B_n
                    state[n, d] = h
                    y[b, t, d] += C_n * h


@njit(fastmath=_FAST, nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _forward_keeping_states(u: Any, delta: Any, A: Any, B: Any, C: Any, states: Any, y: Any) -> None:
    windows, length, channels = u.shape
    entering = np.empty(channels, np.float32)
    for b in range(windows):
        states[b, 0] = _ZERO
        for t in range(length):
            for d in range(channels):
                entering[d] = delta[b, t, d] * u[b, t, d]
                y[b, t, d] = _ZERO
            for n in range(A.shape[0]):
                B_n, C_n = B[b, t, n], C[b, t, n]
                for d in range(channels):
                    h = _exp(delta[b, t, d] * A[n, d]) * states[b, t, n, d] + entering[d] * B_n
                    states[b, t + 1, n, d] = h
                    y[b, t, d] += C_n * h


@njit(fastmath=_FAST, nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _backward(
    grad_y: Any, u: Any, delta: Any, A: Any, B: Any, C: Any, states: Any,
    grad_u: Any, grad_delta: Any, grad_A: Any, grad_B: Any, grad_C: Any,
) -> None:  # fmt: skip
    windows, length, channels = u.shape
    carried = np.empty(A.shape, np.float32)  # gradient of the loss in the state, through later steps
    entering = np.empty(channels, np.float32)
    grad_entering = np.empty(channels, np.float32)
    for b in range(windows):
        carried[:] = _ZERO
        for t in range(length - 1, -1, -1):
            for d in range(channels):
                entering[d] = delta[b, t, d] * u[b, t, d]
                grad_entering[d] = _ZERO
                grad_delta[b, t, d] = _ZERO
            for n in range(A.shape[0]):
                B_n, C_n = B[b, t, n], C[b, t, n]
                sum_B, sum_C = _ZERO, _ZERO
                for d in range(channels):
                    g = carried[n, d] + grad_y[b, t, d] * C_n
                    sum_C += grad_y[b, t, d] * states[b, t + 1, n, d]
                    sum_B += g * entering[d]
                    grad_entering[d] += g * B_n
                    decayed = g * _exp(delta[b, t, d] * A[n, d])
                    carried[n, d] = decayed
                    grad_exponent = decayed * states[b, t, n, d]
                    grad_delta[b, t, d] += grad_exponent * A[n, d]
                    grad_A[n, d] += grad_exponent * delta[b, t, d]
                grad_B[b, t, n], grad_C[b, t, n] = sum_B, sum_C
            for d in range(channels):
                grad_delta[b, t, d] += grad_entering[d] * u[b, t, d]
                grad_u[b, t, d] = grad_entering[d] * delta[b, t, d]
