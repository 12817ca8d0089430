"""The causal convolution with SiLU as two Triton kernels (forward and backward).

Shapes: W windows, L tokens, D channels, K taps, G groups of W / G windows, each with filters of its own (see
`dmray.models.scan_triton`). A program computes a block of tokens and channels of one window. The backward pass
recomputes the convolution instead of storing its result. There are no atomics: the same inputs give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmray.models.triton_rows import rows_of, sum_of_groups, to_groups

_BLOCK_T, _BLOCK_D = 64, 32  # tokens and channels of a program, as measured on an H200


def triton_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `dmray.models.causal_conv.causal_conv_silu`. CUDA and float32 only; differentiable once; works under vmap."""
    assert all(each.dtype == torch.float32 for each in (x, weight, bias)), "the Triton convolution is float32"
    y: Tensor = _conv(x, weight.squeeze(1)[None], bias[None])
    return y


@torch.library.custom_op("dmray::causal_conv_silu", mutates_args=())
def _conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (W, L, D), weight (G, D, K), bias (G, D)."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (rows,), (stride,) = rows_of(x)
    _forward[_grid(x)](rows, weight.contiguous(), bias.contiguous(), y, stride, *_sizes(x, weight), **_blocks(weight))
    return y


@_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("dmray::causal_conv_silu_backward", mutates_args=())
def _conv_backward(grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x, and of weight and bias together (G, D, K + 1)."""
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    windows, blocks = x.shape[0], _grid(x)[1]
    parts = x.new_empty(windows * blocks, weight.shape[1], weight.shape[2] + 1)
    (rows, grad_rows), strides = rows_of(x, grad_y)
    _backward[_grid(x)](
        grad_rows, rows, weight.contiguous(), bias.contiguous(), grad_x, parts, *strides, *_sizes(x, weight),
        **_blocks(weight),
    )  # fmt: skip
    return grad_x, sum_of_groups(parts, weight.shape[0])


@_conv_backward.register_fake
def _(grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    groups, channels, taps = weight.shape
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), x.new_empty(groups, channels, taps + 1)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
    grad_x, filters = _conv_backward(grad_y, *ctx.saved_tensors)
    return grad_x, filters[..., :-1], filters[..., -1]


_conv.register_autograd(_gradients, setup_context=_save)


@_conv.register_vmap
def _(info: Any, in_dims: Any, *tensors: Tensor) -> tuple[Tensor, int]:
    return _conv(*to_groups(info.batch_size, tensors, in_dims)).unflatten(0, (info.batch_size, -1)), 0


def _grid(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], -(-x.shape[1] // _BLOCK_T), -(-x.shape[2] // _BLOCK_D)


def _sizes(x: Tensor, weight: Tensor) -> tuple[int, int, int]:
    return x.shape[1], x.shape[2], x.shape[0] // weight.shape[0]


def _blocks(weight: Tensor) -> dict[str, int]:
    return {"TAPS": weight.shape[2], "BLOCK_T": _BLOCK_T, "BLOCK_D": _BLOCK_D, "num_warps": 4}


@triton.jit  # type: ignore[untyped-decorator]
def _convolved(x, weight, bias, token, t, own, d, in_d, row, length, TAPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """bias + sum_j weight_j x_{t - TAPS + 1 + j}; `token`: the window's first; `own`: the channels of its group."""
    total = tl.load(bias + own, mask=in_d, other=0.0)[None, :] + tl.zeros((t.shape[0], d.shape[0]), dtype=tl.float32)
    for j in tl.static_range(TAPS):
        source = t + (j - TAPS + 1)
        inside = ((source >= 0) & (source < length))[:, None] & in_d[None, :]
        values = tl.load(x + (token + source[:, None]) * row + d[None, :], mask=inside, other=0.0)
        total += tl.load(weight + own * TAPS + j, mask=in_d, other=0.0)[None, :] * values
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    x, weight, bias, y, row, length, channels, group, TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr
):
    t, d = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T), tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d, token = d < channels, tl.program_id(0).to(tl.int64) * length
    own = (tl.program_id(0) // group) * channels + d
    total = _convolved(x, weight, bias, token, t, own, d, in_d, row, length, TAPS)
    inside = (t < length)[:, None] & in_d[None, :]
    tl.store(y + (token + t[:, None]) * channels + d[None, :], total / (1.0 + tl.exp(-total)), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    grad_y, x, weight, bias, grad_x, parts, row, grad_row, length, channels, group,
    TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    t, d = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T), tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d, token = d < channels, tl.program_id(0).to(tl.int64) * length
    own = (tl.program_id(0) // group) * channels + d
    inside = (t < length)[:, None] & in_d[None, :]
    part = parts + ((tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * channels + d) * (TAPS + 1)
    towards_x = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    for later in tl.static_range(TAPS):  # x_t has a part in the outputs t ... t + TAPS - 1
        at = t + later
        there = (at < length)[:, None] & in_d[None, :]
        total = _convolved(x, weight, bias, token, at, own, d, in_d, row, length, TAPS)
        opened = 1.0 / (1.0 + tl.exp(-total))
        grad = tl.load(grad_y + (token + at[:, None]) * grad_row + d[None, :], mask=there, other=0.0)
        grad = grad * opened * (1.0 + total * (1.0 - opened))
        towards_x += tl.load(weight + own * TAPS + (TAPS - 1 - later), mask=in_d, other=0.0)[None, :] * grad
        if later == 0:
            tl.store(part + TAPS, tl.sum(grad, axis=0), mask=in_d)
            for j in tl.static_range(TAPS):
                source = t + (j - TAPS + 1)
                known = ((source >= 0) & (source < length))[:, None] & in_d[None, :]
                values = tl.load(x + (token + source[:, None]) * row + d[None, :], mask=known, other=0.0)
                tl.store(part + j, tl.sum(grad * values, axis=0), mask=in_d)
    tl.store(grad_x + (token + t[:, None]) * channels + d[None, :], towards_x, mask=inside)
