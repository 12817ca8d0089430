"""A Mamba block on one CPU core: matrix products with compiled loops between them, and the backward pass by hand.

A block of small width is slow as single operations: normalisation, slices of the projections, gates and their gradients
go over memory many times. Here each of these is one loop, results are written where they are needed, and the gradients
of slices are written into the whole. Numbers are those of `dmray.models.mamba_block.Block`, to rounding.

Shapes: B windows, L tokens, M = B * L, D width, I inner width, N state size, K taps, R rank of the step size, H hidden
width of the MLP. I and H are multiples of `LANES`.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmray.models.compiled import compiled
from dmray.models.conv_numba import convolve, convolve_backward
from dmray.models.lanes import FAST, LANES, load, sigmoid, store
from dmray.models.scan_numba import rates_for_scan, rates_from_scan, scan_backward, scan_forward

_ZERO, _ONE = np.float32(0), np.float32(1)


class BlockWeights(NamedTuple):
    """The parameters of a block; see `dmray.models.mamba_block`."""

    norm: Tensor
    in_proj: Tensor
    taps: Tensor  # (K, I): the filters of the convolution
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A: Tensor  # (I, N)
    skip: Tensor
    out_proj: Tensor
    norm2: Tensor
    fc1: Tensor
    fc2: Tensor


class _Mixed(NamedTuple):
    """The results of the mixer before its output projection; (M, width in the comment)."""

    scales: Tensor  # (M,): one over the root mean square
    normed: Tensor  # D
    both: Tensor  # 2 I: the convolution's input x, and the gate z
    x: Tensor  # I: after the convolution
    mixed: Tensor  # R + 2 N: step size (low rank), B, C
    delta: Tensor  # I: step sizes before bias and softplus
    rates: Tensor  # of A, see `rates_for_scan`
    y: Tensor  # I: the scan's output
    states: Tensor  # see `scan_forward`


class _Finished(NamedTuple):
    """The results after the scan; (M, width in the comment)."""

    middle: Tensor  # D: the residual between mixer and MLP
    scales: Tensor  # (M,)
    normed: Tensor  # D
    opened: Tensor  # 2 H: values and gates of the MLP
    gated: Tensor  # H


def whole_vectors(inner: int) -> bool:
    """Whether this inner width can be computed here."""
    return inner % LANES == 0


def numba_block(residual: Tensor, weights: BlockWeights, epsilon: float) -> Tensor:
    """The block's output (B, L, D) for its input. CPU and float32 only; differentiable once; uses one thread."""
    output: Tensor = _Block.apply(residual, *weights, epsilon)  # type: ignore[no-untyped-call]
    return output


def numba_block_last(residual: Tensor, weights: BlockWeights, epsilon: float) -> Tensor:
    """The block's output (B, D) for the last token only, without gradients."""
    mixed = _mix(residual.flatten(0, 1), residual.shape[:2], weights, epsilon, keep=False)
    last = mixed.y.view(*residual.shape[:2], -1)[:, -1]
    return _finish(residual[:, -1], last, weights, epsilon)[0]


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, *given: Any) -> Tensor:
        *parameters, epsilon = given
        rows, weights = residual.flatten(0, 1).contiguous(), BlockWeights(*parameters)
        mixed = _mix(rows, residual.shape[:2], weights, epsilon, keep=any(ctx.needs_input_grad))
        output, finished = _finish(rows, mixed.y, weights, epsilon)
        ctx.save_for_backward(*weights, rows, *mixed, *finished)
        return output.view(residual.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        weights, residual = BlockWeights(*islice(saved, len(BlockWeights._fields))), next(saved)
        mixed, finished = _Mixed(*islice(saved, len(_Mixed._fields))), _Finished(*saved)
        middle, *mlp = _mlp_backward(grad_output.reshape(residual.shape), weights, finished)
        grad, *mixer = _mixer_backward(middle, grad_output.shape[:2], weights, residual, mixed)
        grads = (grad.view(grad_output.shape), *mixer, *mlp, None)
        return tuple(each if needed else None for each, needed in zip(grads, ctx.needs_input_grad, strict=True))


def _mix(residual: Tensor, batch: torch.Size, weights: BlockWeights, epsilon: float, keep: bool) -> _Mixed:
    """The mixer up to its output projection, for the residual (M, D); `keep`: what the backward pass needs."""
    normed, scales = rms_norm(residual, weights.norm, epsilon)
    both = torch.mm(normed, weights.in_proj.t())
    x = convolve(both.view(*batch, -1).chunk(2, dim=-1)[0], weights.taps, weights.conv_bias).flatten(0, 1)
    mixed = torch.mm(x, weights.x_proj.t())
    delta = torch.mm(mixed[:, : weights.dt_proj.shape[1]], weights.dt_proj.t())
    rates = rates_for_scan(weights.A)
    y, states = scan_forward(_scan_inputs(batch, weights, both, x, mixed, delta, rates), True, keep)
    return _Mixed(scales, normed, both, x, mixed, delta, rates, y.flatten(0, 1), states)


def _scan_inputs(
    batch: torch.Size, weights: BlockWeights, both: Tensor, x: Tensor, mixed: Tensor, delta: Tensor, rates: Tensor
) -> tuple[Tensor, ...]:
    """`inputs` of `scan_forward`; views, so that gradients are written into the wholes."""
    x, delta, mixed, z = (tokens.view(*batch, -1) for tokens in (x, delta, mixed, both[:, x.shape[1] :]))
    size = weights.A.shape[1]
    B, C = mixed[..., -2 * size :].chunk(2, dim=-1)
    return x, delta, rates, B, C, weights.skip, z, weights.dt_bias


def _finish(residual: Tensor, y: Tensor, weights: BlockWeights, epsilon: float) -> tuple[Tensor, _Finished]:
    """The output for the scan's output y."""
    middle = torch.addmm(residual, y, weights.out_proj.t())
    normed, scales = rms_norm(middle, weights.norm2, epsilon)
    opened = torch.mm(normed, weights.fc1.t())
    gated = gate(opened)
    return torch.addmm(middle, gated, weights.fc2.t()), _Finished(middle, scales, normed, opened, gated)


def _mlp_backward(grad: Tensor, weights: BlockWeights, results: _Finished) -> tuple[Tensor, ...]:
    """The gradients of the residual between mixer and MLP, and of norm2, fc1, fc2, for that of the output."""
    fc2 = torch.mm(grad.t(), results.gated)
    opened = gate_backward(torch.mm(grad, weights.fc2), results.opened)
    fc1 = torch.mm(opened.t(), results.normed)
    normed = torch.mm(opened, weights.fc1)
    residual, norm2 = rms_norm_backward(grad, normed, results.middle, results.scales, weights.norm2)
    return residual, norm2, fc1, fc2


def _mixer_backward(
    grad: Tensor, batch: torch.Size, weights: BlockWeights, residual: Tensor, results: _Mixed
) -> tuple[Tensor, ...]:
    """The gradients of the input and of the mixer's parameters, in their order, for that of the residual after it.

    Here a tensor with the name of a result is the gradient of that result.
    """
    rank = weights.dt_proj.shape[1]
    out_proj, y = torch.mm(grad.t(), results.y), torch.mm(grad, weights.out_proj)
    both, x, mixed, delta = (torch.empty_like(each) for each in (results.both, results.x, results.mixed, results.delta))
    rates, skip, dt_bias = (torch.zeros_like(each) for each in (results.rates, weights.skip, weights.dt_bias))
    read = results.both, results.x, results.mixed, results.delta, results.rates
    inputs = _scan_inputs(batch, weights, *read)
    into = _scan_inputs(batch, weights._replace(skip=skip, dt_bias=dt_bias), both, x, mixed, delta, rates)
    scan_backward(inputs, True, results.states, y.view(*batch, -1), into)
    dt_proj = torch.mm(delta.t(), results.mixed[:, :rank])
    mixed[:, :rank] = torch.mm(delta, weights.dt_proj)
    x_proj = torch.mm(mixed.t(), results.x)
    x.addmm_(mixed, weights.x_proj)
    given, before_conv = (each.view(*batch, -1).chunk(2, dim=-1)[0] for each in (results.both, both))
    taps, conv_bias = convolve_backward(x.view(*batch, -1), given, weights.taps, weights.conv_bias, before_conv)
    in_proj, normed = torch.mm(both.t(), results.normed), torch.mm(both, weights.in_proj)
    before, norm = rms_norm_backward(grad, normed, residual, results.scales, weights.norm)
    A = rates_from_scan(rates)
    return before, norm, in_proj, taps, conv_bias, x_proj, dt_proj, dt_bias, A, skip, out_proj


def numba_rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The normed x (..., D). CPU and float32 only; differentiable once."""
    normed: Tensor = _RmsNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return normed


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        normed, scales = rms_norm(rows, weight, epsilon)
        ctx.save_for_backward(rows, weight, scales)
        return normed.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, scales = ctx.saved_tensors
        grad_x, grad_weight = rms_norm_backward(torch.zeros(rows.shape), grad.reshape(rows.shape), rows, scales, weight)
        needed_x, needed_weight, _ = ctx.needs_input_grad
        return grad_x.view(grad.shape) if needed_x else None, grad_weight if needed_weight else None, None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x (M, D) divided by the root mean square of its row, times `weight`; and one over that root (M,)."""
    x = x.contiguous()
    normed, scales = torch.empty_like(x), torch.empty(len(x))
    rms_norm_into(x.numpy(), weight.numpy(), np.float32(epsilon), normed.numpy(), scales.numpy())
    return normed, scales


def rms_norm_backward(
    grad: Tensor, grad_normed: Tensor, x: Tensor, scales: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """`grad` plus the gradient of x for that of the normed x; and the gradient of `weight`."""
    total, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
    given = (grad, grad_normed, x, scales, weight, total, grad_weight)
    _rms_norm_backward(*(each.contiguous().numpy() for each in given))
    return total, grad_weight


def gate(opened: Tensor) -> Tensor:
    """value * silu(gate), (M, H), for the values and gates (M, 2 H)."""
    gated = torch.empty(len(opened), opened.shape[1] // 2)
    gate_into(opened.numpy(), gated.numpy())
    return gated


def gate_backward(grad: Tensor, opened: Tensor) -> Tensor:
    """The gradient of values and gates (M, 2 H) for that of the gated values (M, H)."""
    grad_opened = torch.empty_like(opened)
    _gate_backward(grad.numpy(), opened.numpy(), grad_opened.numpy())
    return grad_opened


@compiled(**FAST, nogil=True)
def rms_norm_into(x: Any, weight: Any, epsilon: Any, normed: Any, scales: Any) -> None:
    """See `rms_norm`; writes `normed` (M, D) and `scales` (M,)."""
    rows, width = x.shape
    for row in range(rows):
        total = _ZERO
        for i in range(width):
            total += x[row, i] * x[row, i]
        scale = _ONE / np.sqrt(total / np.float32(width) + epsilon)
        scales[row] = scale
        for i in range(width):
            normed[row, i] = x[row, i] * scale * weight[i]


@compiled(**FAST, nogil=True)
def _rms_norm_backward(
    grad: Any, grad_normed: Any, x: Any, scales: Any, weight: Any, total: Any, grad_weight: Any
) -> None:
    rows, width = x.shape
    for row in range(rows):
        scale, along = scales[row], _ZERO
        for i in range(width):
            along += grad_normed[row, i] * weight[i] * x[row, i]
        along *= scale * scale / np.float32(width)
        for i in range(width):
            total[row, i] = grad[row, i] + scale * (grad_normed[row, i] * weight[i] - along * x[row, i])
        for i in range(width):
            grad_weight[i] += grad_normed[row, i] * x[row, i] * scale


@compiled(**FAST, nogil=True)
def gate_into(opened: Any, gated: Any) -> None:
    """See `gate`; writes `gated` (M, H)."""
    rows, width = gated.shape
    opened, gated = opened.reshape(-1), gated.reshape(-1)
    for row in range(rows):
        for first in range(0, width, LANES):
            value, closed = row * 2 * width + first, load(opened, row * 2 * width + width + first)
            store(gated, row * width + first, load(opened, value) * closed * sigmoid(closed))


@compiled(**FAST, nogil=True)
def _gate_backward(grad: Any, opened: Any, grad_opened: Any) -> None:
    rows, width = grad.shape
    grad, opened, grad_opened = grad.reshape(-1), opened.reshape(-1), grad_opened.reshape(-1)
    for row in range(rows):
        for first in range(0, width, LANES):
            value, place = row * 2 * width + first, row * 2 * width + width + first
            given, closed = load(grad, row * width + first), load(opened, place)
            open_ = sigmoid(closed)
            store(grad_opened, value, given * closed * open_)
            store(grad_opened, place, given * load(opened, value) * open_ * (closed * (_ONE - open_) + _ONE))
