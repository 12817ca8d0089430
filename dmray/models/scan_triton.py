"""The selective scan as two Triton kernels (forward and backward), for GPUs without mamba-ssm.

Shapes: B windows, L tokens, D channels, N state size. A program processes the tokens of one window for a block of
channels, with the states in registers. The forward pass stores all states (B, L, D, N) for the backward pass. Sums over
windows or channels are stored as partial sums and added by PyTorch. There are no atomics, so the same inputs give the
same bits.

Tested in Triton's interpreter only (`TRITON_INTERPRET=1`): no GPU was at hand.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK_D = 32


def triton_scan(
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
    """See `dmray.models.scan_reference.Scan`. CUDA and float32 only; differentiable once."""
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    assert all(x.dtype == torch.float32 for x in inputs), "the Triton scan is float32"
    y: Tensor = _Kernels.apply(*inputs, delta_softplus)  # type: ignore[no-untyped-call]
    return y


class _Kernels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, ctx.softplus = inputs
        kept = [x.contiguous() for x in tensors]
        u, _, A, *_ = kept
        keep = any(ctx.needs_input_grad)
        y, states = torch.empty_like(u), u.new_empty(*u.shape, A.shape[1]) if keep else u
        _forward[_grid(u)](*kept, y, states, *_sizes(u, A), SOFTPLUS=ctx.softplus, KEEP=keep, **_blocks(A), num_warps=1)
        ctx.save_for_backward(*kept, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        *kept, states = ctx.saved_tensors
        u, _, A, B, _, D, *_ = kept
        grad_u, grad_delta, grad_z = (torch.empty_like(u) for _ in range(3))
        parts_B, parts_C = (B.new_empty(_grid(u)[1], *B.shape) for _ in range(2))
        parts_A, parts_D, parts_bias = (x.new_empty(u.shape[0], *x.shape) for x in (A, D, D))
        grads = (grad_u, grad_delta, parts_A, parts_B, parts_C, parts_D, grad_z, parts_bias)
        _backward[_grid(u)](
            grad_y.contiguous(), *kept, states, *grads, *_sizes(u, A), SOFTPLUS=ctx.softplus, **_blocks(A), num_warps=1
        )
        summed = (x.sum(0) if place in (2, 3, 4, 5, 7) else x for place, x in enumerate(grads))
        return *(x if needed else None for x, needed in zip(summed, ctx.needs_input_grad, strict=False)), None


def _grid(u: Tensor) -> tuple[int, int]:
    return u.shape[0], -(-u.shape[2] // _BLOCK_D)


def _sizes(u: Tensor, A: Tensor) -> tuple[int, int, int]:
    return u.shape[1], u.shape[2], A.shape[1]


def _blocks(A: Tensor) -> dict[str, int]:
    return {"BLOCK_D": _BLOCK_D, "BLOCK_N": triton.next_power_of_2(A.shape[1])}


@triton.jit
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _softplus(x):  # type: ignore[no-untyped-def]
    # log1p(e) = 2 artanh(e / (2 + e)): the GPU's own log is not exact near 1, where small step sizes are
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return tl.where(x < 0.0, 0.0, x) + 2.0 * s * series


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    u, delta, A, B, C, D, z, bias, y, states, length, channels, size,
    SOFTPLUS: tl.constexpr, KEEP: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    d, n = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    in_d, in_n = d < channels, n < size
    in_both = in_d[:, None] & in_n[None, :]
    rates = tl.load(A + d[:, None] * size + n[None, :], mask=in_both, other=0.0)
    skip, shift = tl.load(D + d, mask=in_d, other=0.0), tl.load(bias + d, mask=in_d, other=0.0)
    h = tl.zeros((BLOCK_D, BLOCK_N), dtype=tl.float32)
    for t in range(length):
        token = tl.program_id(0).to(tl.int64) * length + t
        row = token * channels + d
        x, gate = tl.load(u + row, mask=in_d, other=0.0), tl.load(z + row, mask=in_d, other=0.0)
        step = tl.load(delta + row, mask=in_d, other=0.0) + shift
        if SOFTPLUS:
            step = _softplus(step)
        B_t = tl.load(B + token * size + n, mask=in_n, other=0.0)
        C_t = tl.load(C + token * size + n, mask=in_n, other=0.0)
        h = tl.exp(step[:, None] * rates) * h + (step * x)[:, None] * B_t[None, :]
        if KEEP:
            tl.store(states + row[:, None] * size + n[None, :], h, mask=in_both)
        out = tl.sum(h * C_t[None, :], axis=1) + skip * x
        tl.store(y + row, out * gate * _sigmoid(gate), mask=in_d)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    grad_y, u, delta, A, B, C, D, z, bias, states,
    grad_u, grad_delta, parts_A, parts_B, parts_C, parts_D, grad_z, parts_bias, length, channels, size,
    SOFTPLUS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    window, windows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    d, n = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    in_d, in_n = d < channels, n < size
    in_both = in_d[:, None] & in_n[None, :]
    across = d[:, None] * size + n[None, :]
    rates = tl.load(A + across, mask=in_both, other=0.0)
    skip, shift = tl.load(D + d, mask=in_d, other=0.0), tl.load(bias + d, mask=in_d, other=0.0)
    carried = tl.zeros((BLOCK_D, BLOCK_N), dtype=tl.float32)  # gradient with respect to the state, through later steps
    grad_A = tl.zeros((BLOCK_D, BLOCK_N), dtype=tl.float32)
    grad_D, grad_bias = tl.zeros((BLOCK_D,), dtype=tl.float32), tl.zeros((BLOCK_D,), dtype=tl.float32)
    last = (window * length + length - 1) * channels + d
    h = tl.load(states + last[:, None] * size + n[None, :], mask=in_both, other=0.0)
    for back in range(length):
        t = length - 1 - back
        token = window * length + t
        row = token * channels + d
        x, gate = tl.load(u + row, mask=in_d, other=0.0), tl.load(z + row, mask=in_d, other=0.0)
        raw = tl.load(delta + row, mask=in_d, other=0.0) + shift
        step = raw
        if SOFTPLUS:
            step = _softplus(raw)
        B_t = tl.load(B + token * size + n, mask=in_n, other=0.0)
        C_t = tl.load(C + token * size + n, mask=in_n, other=0.0)
        before = tl.zeros((BLOCK_D, BLOCK_N), dtype=tl.float32)
        if t > 0:
            before = tl.load(states + (row[:, None] - channels) * size + n[None, :], mask=in_both, other=0.0)
        out, opened = tl.sum(h * C_t[None, :], axis=1) + skip * x, _sigmoid(gate)
        grad = tl.load(grad_y + row, mask=in_d, other=0.0)
        tl.store(grad_z + row, grad * out * opened * (1.0 + gate * (1.0 - opened)), mask=in_d)
        grad = grad * gate * opened
        g = carried + grad[:, None] * C_t[None, :]
        part = (tl.program_id(1) * windows * length + token) * size + n
        tl.store(parts_C + part, tl.sum(grad[:, None] * h, axis=0), mask=in_n)
        tl.store(parts_B + part, tl.sum(g * (step * x)[:, None], axis=0), mask=in_n)
        grad_entering = tl.sum(g * B_t[None, :], axis=1)
        carried = g * tl.exp(step[:, None] * rates)
        grad_exponent = carried * before
        grad_A += grad_exponent * step[:, None]
        grad_step = tl.sum(grad_exponent * rates, axis=1) + grad_entering * x
        if SOFTPLUS:
            grad_step = grad_step * _sigmoid(raw)
        tl.store(grad_u + row, grad_entering * step + grad * skip, mask=in_d)
        tl.store(grad_delta + row, grad_step, mask=in_d)
        grad_D += grad * x
        grad_bias += grad_step
        h = before
    tl.store(parts_A + window * channels * size + across, grad_A, mask=in_both)
    tl.store(parts_D + window * channels + d, grad_D, mask=in_d)
    tl.store(parts_bias + window * channels + d, grad_bias, mask=in_d)
