"""The selective scan as two Triton kernels (forward and backward), for GPUs without mamba-ssm.

Shapes: W windows, L tokens, D channels, N state size, G groups of W / G windows, each with rates, skip and bias of its
own: one group for one network, one a seat for networks that are stacked (`torch.func.vmap`). A program processes the
tokens of one window for a block of channels, with the states in registers. The forward pass stores all states
(W, L, D, N) for the backward pass. Sums over windows or channels are stored as partial sums and added by PyTorch. There
are no atomics, so the same inputs give the same bits; a group's numbers do not depend on what the other groups hold.

The kernels are custom operators of PyTorch, so that `torch.compile` and `torch.func.vmap` take them as they are.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmray.models.triton_rows import rows_of, sum_of_groups, to_groups

# Channels of a program, as measured on an H200 with 256 channels and 40 tokens: few windows need many small programs
_FEW_WINDOWS, _BLOCK_FEW, _BLOCK_MANY = 128, 8, 32


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
    """See `dmray.models.scan_reference.Scan`. CUDA and float32 only; differentiable once; has a rule for vmap."""
    inputs = (u, delta, A[None], B, C, D[None], z, delta_bias[None])
    assert all(x.dtype == torch.float32 for x in inputs), "the Triton scan is float32"
    y: Tensor = _scan(*inputs, delta_softplus, torch.is_grad_enabled())[0]
    return y


@torch.library.custom_op("dmray::selective_scan", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    bias: Tensor,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """y (W, L, D), and the states, or nothing without `keep`. A (G, D, N); D, bias (G, D)."""
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    states = u.new_empty(*u.shape, A.shape[2]) if keep else u.new_empty(0)
    rows, strides = rows_of(u, delta, B, C, z)
    x, step, B, C, gate = rows
    fixed = [each.contiguous() for each in (A, D, bias)]
    _forward[_grid(u)](
        x, step, B, C, gate, *fixed, y, states, *strides, *_sizes(u, A), SOFTPLUS=softplus, KEEP=keep, **_blocks(u, A)
    )
    return y, states


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    return y, u.new_empty(*u.shape, A.shape[2]) if rest[-1] else u.new_empty(0)


@torch.library.custom_op("dmray::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    bias: Tensor,
    states: Tensor,
    softplus: bool,
) -> list[Tensor]:
    """The gradients of u, delta, z; B and C; A, D and bias. The last five are views of two sums."""
    grad_u, grad_delta, grad_z = (torch.empty(u.shape, dtype=u.dtype, device=u.device) for _ in range(3))
    windows, length, _ = u.shape
    groups, channels, size = A.shape
    across_channels = u.new_empty(_grid(u)[1], 2, windows, length, size)
    across_windows = u.new_empty(windows, channels, size + 2)
    rows, strides = rows_of(u, delta, B, C, z)
    x, step, B, C, gate = rows
    fixed = [each.contiguous() for each in (grad_y, A, D, bias)]
    _backward[_grid(u)](
        fixed[0], x, step, B, C, gate, *fixed[1:], states, grad_u, grad_delta, grad_z, across_channels, across_windows,
        *strides, *_sizes(u, A), SOFTPLUS=softplus, **_blocks(u, A),
    )  # fmt: skip
    return [grad_u, grad_delta, grad_z, across_channels.sum(0), sum_of_groups(across_windows, groups)]


@_scan_backward.register_fake
def _(grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, *rest: Any) -> list[Tensor]:
    rows = [torch.empty(u.shape, dtype=u.dtype, device=u.device) for _ in range(3)]
    return [*rows, u.new_empty(2, *B.shape), u.new_empty(A.shape[0], A.shape[1], A.shape[2] + 2)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, keep = inputs
    assert keep, "gradients need the states"
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _gradients(ctx: Any, grad_y: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_u, grad_delta, grad_z, tokens, channels = _scan_backward(grad_y, *ctx.saved_tensors, ctx.softplus)
    size = channels.shape[2] - 2
    grad_A, grad_D, grad_bias = channels[..., :size], channels[..., size], channels[..., size + 1]
    return grad_u, grad_delta, grad_A, tokens[0], tokens[1], grad_D, grad_z, grad_bias, None, None


_scan.register_autograd(_gradients, setup_context=_save)


@_scan.register_vmap
def _(info: Any, in_dims: Any, *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int | None]]:
    *tensors, softplus, keep = inputs
    y, states = _scan(*to_groups(info.batch_size, tensors, in_dims), softplus, keep)
    seats = info.batch_size
    return (y.unflatten(0, (seats, -1)), states.unflatten(0, (seats, -1)) if keep else states), (0, 0 if keep else None)


def _grid(u: Tensor) -> tuple[int, int]:
    return u.shape[0], -(-u.shape[2] // _block(u))


def _block(u: Tensor) -> int:
    return _BLOCK_FEW if u.shape[0] < _FEW_WINDOWS else _BLOCK_MANY


def _sizes(u: Tensor, A: Tensor) -> tuple[int, int, int, int]:
    return u.shape[1], u.shape[2], A.shape[2], u.shape[0] // A.shape[0]


def _blocks(u: Tensor, A: Tensor) -> dict[str, int]:
    return {"BLOCK_D": _block(u), "BLOCK_N": triton.next_power_of_2(A.shape[2]), "num_warps": 1}


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
    u, delta, B, C, z, A, D, bias, y, states, u_row, delta_row, B_row, C_row, z_row, length, channels, size, group,
    SOFTPLUS: tl.constexpr, KEEP: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    d, n = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    in_d, in_n = d < channels, n < size
    in_both = in_d[:, None] & in_n[None, :]
    own = (tl.program_id(0) // group) * channels + d
    rates = tl.load(A + own[:, None] * size + n[None, :], mask=in_both, other=0.0)
    skip, shift = tl.load(D + own, mask=in_d, other=0.0), tl.load(bias + own, mask=in_d, other=0.0)
    h = tl.zeros((BLOCK_D, BLOCK_N), dtype=tl.float32)
    for t in range(length):
        token = tl.program_id(0).to(tl.int64) * length + t
        row = token * channels + d
        x, gate = (
            tl.load(u + token * u_row + d, mask=in_d, other=0.0),
            tl.load(z + token * z_row + d, mask=in_d, other=0.0),
        )
        step = tl.load(delta + token * delta_row + d, mask=in_d, other=0.0) + shift
        if SOFTPLUS:
            step = _softplus(step)
        B_t = tl.load(B + token * B_row + n, mask=in_n, other=0.0)
        C_t = tl.load(C + token * C_row + n, mask=in_n, other=0.0)
        h = tl.exp(step[:, None] * rates) * h + (step * x)[:, None] * B_t[None, :]
        if KEEP:
            tl.store(states + row[:, None] * size + n[None, :], h, mask=in_both)
        out = tl.sum(h * C_t[None, :], axis=1) + skip * x
        tl.store(y + row, out * gate * _sigmoid(gate), mask=in_d)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    grad_y, u, delta, B, C, z, A, D, bias, states, grad_u, grad_delta, grad_z, across_channels, across_windows,
    u_row, delta_row, B_row, C_row, z_row, length, channels, size, group,
    SOFTPLUS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    window, windows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    d, n = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    in_d, in_n = d < channels, n < size
    in_both = in_d[:, None] & in_n[None, :]
    own = (tl.program_id(0) // group) * channels + d
    rates = tl.load(A + own[:, None] * size + n[None, :], mask=in_both, other=0.0)
    skip, shift = tl.load(D + own, mask=in_d, other=0.0), tl.load(bias + own, mask=in_d, other=0.0)
    carried = tl.zeros((BLOCK_D, BLOCK_N), dtype=tl.float32)  # gradient with respect to the state, through later steps
    grad_A = tl.zeros((BLOCK_D, BLOCK_N), dtype=tl.float32)
    grad_D, grad_bias = tl.zeros((BLOCK_D,), dtype=tl.float32), tl.zeros((BLOCK_D,), dtype=tl.float32)
    last = (window * length + length - 1) * channels + d
    h = tl.load(states + last[:, None] * size + n[None, :], mask=in_both, other=0.0)
    for back in range(length):
        t = length - 1 - back
        token = window * length + t
        row = token * channels + d
        x, gate = (
            tl.load(u + token * u_row + d, mask=in_d, other=0.0),
            tl.load(z + token * z_row + d, mask=in_d, other=0.0),
        )
        raw = tl.load(delta + token * delta_row + d, mask=in_d, other=0.0) + shift
        step = raw
        if SOFTPLUS:
            step = _softplus(raw)
        B_t = tl.load(B + token * B_row + n, mask=in_n, other=0.0)
        C_t = tl.load(C + token * C_row + n, mask=in_n, other=0.0)
        before = tl.zeros((BLOCK_D, BLOCK_N), dtype=tl.float32)
        if t > 0:
            before = tl.load(states + (row[:, None] - channels) * size + n[None, :], mask=in_both, other=0.0)
        out, opened = tl.sum(h * C_t[None, :], axis=1) + skip * x, _sigmoid(gate)
        grad = tl.load(grad_y + row, mask=in_d, other=0.0)
        tl.store(grad_z + row, grad * out * opened * (1.0 + gate * (1.0 - opened)), mask=in_d)
        grad = grad * gate * opened
        g = carried + grad[:, None] * C_t[None, :]
        part = across_channels + (tl.program_id(1) * 2 * windows * length + token) * size + n
        tl.store(part, tl.sum(g * (step * x)[:, None], axis=0), mask=in_n)
        tl.store(part + windows * length * size, tl.sum(grad[:, None] * h, axis=0), mask=in_n)
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
    sums = across_windows + (window * channels + d) * (size + 2)
    tl.store(sums[:, None] + n[None, :], grad_A, mask=in_both)
    tl.store(sums + size, grad_D, mask=in_d)
    tl.store(sums + size + 1, grad_bias, mask=in_d)
