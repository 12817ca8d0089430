"""A block of the causal transformer, forward and backward pass, for one CPU core.

The matrix products are PyTorch's. Between them are compiled loops, each of which goes over the numbers once: LayerNorm;
bias and ReLU; bias, dropout and residual addition; scale, causal softmax and dropout of the attention weights. Results
are those of `dmray.models.causal_transformer` in plain PyTorch, to rounding, with other masks of dropout.

Shapes: B windows, L tokens, D width, H heads, E = D / H, R = B L rows. Attention weights are (H, B, L, L), so that each
head has one batched product. The backward pass draws masks again (`dmray.models.dropout_numba`); only the attention
weights are kept, before and after dropout.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmray.models.compiled import compiled
from dmray.models.configs import Activation
from dmray.models.dropout_numba import (
    BLOCK,
    Mask,
    apply_mask,
    blocks_of,
    draw_factors,
    draw_row,
    factors_of_row,
    new_masks,
)
from dmray.models.lanes import FAST, LANES, LOG2_E, exp2, load, store

_ZERO, _ONE, _NO_BOUND = np.float32(0), np.float32(1), np.float32(-np.inf)


class BlockParameters(NamedTuple):
    """The parameters of a block, named as in `dmray.models.causal_transformer`; weights are (outputs, inputs)."""

    ln_1: Tensor
    ln_1_bias: Tensor
    c_attn: Tensor
    c_attn_bias: Tensor
    attention_proj: Tensor  # attention's `c_proj`
    attention_proj_bias: Tensor
    ln_2: Tensor
    ln_2_bias: Tensor
    c_fc: Tensor
    c_fc_bias: Tensor
    mlp_proj: Tensor  # the MLP's `c_proj`
    mlp_proj_bias: Tensor


class BlockSetting(NamedTuple):
    """What a block computes beside its parameters."""

    n_head: int
    activation: Activation
    epsilon: float  # of both LayerNorms
    rates: tuple[float, float, float]  # of dropout: attention weights, attention's branch, MLP's branch


class _Kept(NamedTuple):
    """Results of the forward pass that the backward pass needs; (R, D) if not said otherwise."""

    x: Tensor
    statistics_1: Tensor  # (R, 2): mean and 1 / deviation, for ln_1
    normed_1: Tensor
    qkv: Tensor  # (B, L, 3, H, E)
    weights: Tensor  # (H, B, L, L)
    dropped: Tensor  # the weights after dropout
    mixed: Tensor  # the heads' outputs side by side
    middle: Tensor  # the residual path between attention and MLP
    statistics_2: Tensor
    normed_2: Tensor
    hidden: Tensor  # (R, 4 D), before GELU; for ReLU the same tensor as `active`
    active: Tensor  # (R, 4 D)


def numba_block(x: Tensor, parameters: BlockParameters, setting: BlockSetting) -> Tensor:
    """The block's output (B, L, D). CPU and float32 only; differentiable once; the loops use one thread.

    Draws from torch's global RNG if any rate of dropout is above 0.
    """
    inputs = (x, *parameters)
    assert all(x.dtype == torch.float32 and x.device.type == "cpu" for x in inputs), "needs float32 on a CPU"
    y: Tensor = _Block.apply(x, setting, *parameters)  # type: ignore[no-untyped-call]
    return y


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        given, setting, *parameters = inputs
        p, (windows, length, width) = BlockParameters(*parameters), given.shape
        masks = new_masks(*setting.rates)
        x = given.contiguous().view(-1, width)

        normed_1, statistics_1 = _normalised(x, p.ln_1, p.ln_1_bias, setting.epsilon)
        qkv = torch.mm(normed_1, p.c_attn.t())
        _add_bias(_array(qkv), _array(p.c_attn_bias), _NO_BOUND)
        qkv = qkv.view(windows, length, 3, setting.n_head, -1)
        weights, dropped, mixed = _attention(qkv, masks[0])
        middle = torch.mm(mixed, p.attention_proj.t())
        _join(_array(middle), _array(x), _array(p.attention_proj_bias), masks[1])

        normed_2, statistics_2 = _normalised(middle, p.ln_2, p.ln_2_bias, setting.epsilon)
        hidden = torch.mm(normed_2, p.c_fc.t())
        relu = setting.activation == "relu"
        _add_bias(_array(hidden), _array(p.c_fc_bias), _ZERO if relu else _NO_BOUND)
        active = hidden if relu else F.gelu(hidden)
        y = torch.mm(active, p.mlp_proj.t())
        _join(_array(y), _array(middle), _array(p.mlp_proj_bias), masks[2])

        kept = _Kept(
            x, statistics_1, normed_1, qkv, weights, dropped, mixed, middle, statistics_2, normed_2, hidden, active
        )
        ctx.setting, ctx.masks = setting, masks
        ctx.save_for_backward(*parameters, *kept)
        return y.view(given.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, len(BlockParameters._fields)
        p, kept = BlockParameters(*saved[:count]), _Kept(*saved[count:])
        needed = BlockParameters(*ctx.needs_input_grad[2:])
        above = grad_y.contiguous().view(kept.x.shape)

        # `grad` is the gradient of the MLP's branch, then of normed_2, then of middle, in the same memory
        grad, grad_mlp_proj_bias = apply_mask(above, ctx.masks[2])
        grad_mlp_proj = _of_weight(needed.mlp_proj, grad, kept.active)
        grad_hidden = torch.mm(grad, p.mlp_proj)
        if ctx.setting.activation == "relu":
            grad_c_fc_bias = torch.zeros_like(p.c_fc_bias)
            _relu_back(_array(grad_hidden), _array(kept.active), _array(grad_c_fc_bias))
        else:
            grad_hidden = torch.ops.aten.gelu_backward(grad_hidden, kept.hidden)
            grad_c_fc_bias = grad_hidden.sum(0)
        grad_c_fc = _of_weight(needed.c_fc, grad_hidden, kept.normed_2)
        torch.mm(grad_hidden, p.c_fc, out=grad)
        grad_ln_2, grad_ln_2_bias = _normalised_back(grad, above, kept.middle, kept.statistics_2, p.ln_2)

        # and `grad_x` of attention's branch, then of normed_1, then of x
        grad_x, grad_attention_proj_bias = apply_mask(grad, ctx.masks[1])
        grad_attention_proj = _of_weight(needed.attention_proj, grad_x, kept.mixed)
        grad_qkv = grad_hidden.view(-1)[: kept.qkv.numel()].view(len(grad), -1)  # memory that is free again
        _attention_back(torch.mm(grad_x, p.attention_proj), kept, grad_qkv)
        grad_c_attn = _of_weight(needed.c_attn, grad_qkv, kept.normed_1)
        torch.mm(grad_qkv, p.c_attn, out=grad_x)
        grad_ln_1, grad_ln_1_bias = _normalised_back(grad_x, grad, kept.x, kept.statistics_1, p.ln_1)

        grads = (
            *(grad_ln_1, grad_ln_1_bias, grad_c_attn, grad_qkv.sum(0), grad_attention_proj, grad_attention_proj_bias),
            *(grad_ln_2, grad_ln_2_bias, grad_c_fc, grad_c_fc_bias, grad_mlp_proj, grad_mlp_proj_bias),
        )
        return grad_x.view(grad_y.shape), None, *(x if used else None for x, used in zip(grads, needed, strict=True))


def _attention(qkv: Tensor, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
    """The attention weights (H, B, L, L) before and after dropout, and the heads' outputs (R, D)."""
    windows, length, _, heads, _ = qkv.shape
    weights = qkv.new_empty(heads, windows, length, length)
    dropped = torch.empty_like(weights) if mask.drops else weights
    for head, (query, key, _) in enumerate(_heads(qkv)):
        torch.bmm(query, key.mT, out=weights[head])
    _attend(_matrices(weights), _scale(qkv) * LOG2_E, mask, _matrices(dropped))
    mixed = [torch.bmm(dropped[head], value).flatten(0, 1) for head, (_, _, value) in enumerate(_heads(qkv))]
    return weights, dropped, torch.cat(mixed, dim=1) if heads > 1 else mixed[0]


def _attention_back(grad: Tensor, kept: _Kept, grad_qkv: Tensor) -> None:
    """Compute `grad_qkv` (R, 3 D) from the gradient of `kept.mixed`."""
    grads, heads = grad.view_as(kept.qkv[:, :, 0]).unbind(2), _heads(kept.qkv)
    scores = torch.empty_like(kept.weights)
    for above, (_, _, value), score in zip(grads, heads, scores, strict=True):
        torch.bmm(above, value.mT, out=score)
    _attend_back(_matrices(scores), _matrices(kept.weights), _matrices(kept.dropped), _scale(kept.qkv))
    parts = [
        *(torch.bmm(score, key) for score, (_, key, _) in zip(scores, heads, strict=True)),
        *(torch.bmm(score.mT, query) for score, (query, _, _) in zip(scores, heads, strict=True)),
        *(torch.bmm(weight.mT, above) for weight, above in zip(kept.dropped, grads, strict=True)),
    ]
    torch.cat([part.flatten(0, 1) for part in parts], dim=1, out=grad_qkv)


def _heads(qkv: Tensor) -> list[tuple[Tensor, ...]]:
    """Query, key and value (B, L, E) of each head."""
    return [head.unbind(2) for head in qkv.unbind(3)]


def _scale(qkv: Tensor) -> np.float32:
    return np.float32(1 / math.sqrt(qkv.shape[-1]))


def _of_weight(needed: object, grad: Tensor, inputs: Tensor) -> Tensor | None:
    """The gradient of a linear layer's weight from that of its outputs."""
    return torch.mm(grad.t(), inputs) if needed else None


def _array(x: Tensor) -> np.ndarray:
    numbers: np.ndarray = x.detach().contiguous().numpy()
    return numbers


def _matrices(x: Tensor) -> np.ndarray:
    return _array(x.flatten(0, 1))


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    normed, statistics = torch.empty_like(x), x.new_empty(len(x), 2)
    _normalise(_array(x), (_array(weight), _array(bias), np.float32(epsilon)), _array(normed), _array(statistics))
    return normed, statistics


def _normalised_back(
    grad: Tensor, above: Tensor, x: Tensor, statistics: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Replace `grad`, of the normed x, by the gradient of x plus `above`. Returns the gradients of weight and bias."""
    sums, bias_sums = torch.zeros_like(weight), torch.zeros_like(weight)
    layer = (_array(x), _array(statistics), _array(weight))
    _normalise_back(_array(grad), _array(above), layer, _array(sums), _array(bias_sums))
    return sums, bias_sums


@compiled(**FAST, nogil=True)
def _normalise(x: Any, layer: Any, normed: Any, statistics: Any) -> None:
    weight, bias, epsilon = layer
    rows, width = x.shape
    count = np.float32(width)
    for r in range(rows):
        total, squares = _ZERO, _ZERO
        for j in range(width):
            total += x[r, j]
        mean = total / count
        for j in range(width):
            squares += (x[r, j] - mean) * (x[r, j] - mean)
        inverse = _ONE / np.float32(math.sqrt(squares / count + epsilon))
        statistics[r, 0], statistics[r, 1] = mean, inverse
        for j in range(width):
            normed[r, j] = (x[r, j] - mean) * inverse * weight[j] + bias[j]


@compiled(**FAST, nogil=True)
def _normalise_back(grad: Any, above: Any, layer: Any, sums: Any, bias_sums: Any) -> None:
    x, statistics, weight = layer
    rows, width = x.shape
    count = np.float32(width)
    for r in range(rows):
        mean, inverse = statistics[r, 0], statistics[r, 1]
        total, along = _ZERO, _ZERO
        for j in range(width):
            g = grad[r, j] * weight[j]
            total += g
            along += g * (x[r, j] - mean) * inverse
        for j in range(width):  # a loop of its own: LLVM vectorizes none that stores beside many arrays
            sums[j] += grad[r, j] * (x[r, j] - mean) * inverse
            bias_sums[j] += grad[r, j]
        total, along = total / count, along / count
        for j in range(width):
            normed = (x[r, j] - mean) * inverse
            grad[r, j] = above[r, j] + inverse * (grad[r, j] * weight[j] - total - normed * along)


@compiled(**FAST, nogil=True)
def _join(branch: Any, residual: Any, bias: Any, mask: Any) -> None:
    """branch = residual + dropout(branch + bias)."""
    rows, width = branch.shape
    factors = factors_of_row(mask, width)
    for r in range(rows):
        draw_row(mask, r, factors)
        for j in range(width):
            branch[r, j] = residual[r, j] + (branch[r, j] + bias[j]) * factors[j]


@compiled(**FAST, nogil=True)
def _add_bias(x: Any, bias: Any, least: Any) -> None:
    """x = the maximum of x + bias and `least`; NaN stays NaN."""
    rows, width = x.shape
    for r in range(rows):
        for j in range(width):
            y = x[r, j] + bias[j]
            x[r, j] = least if y <= least else y


@compiled(**FAST, nogil=True)
def _relu_back(grad: Any, active: Any, sums: Any) -> None:
    rows, width = grad.shape
    for r in range(rows):
        for j in range(width):
            g = grad[r, j]
            g = _ZERO if active[r, j] <= _ZERO else g
            grad[r, j] = g
            sums[j] += g


@compiled(**FAST, nogil=True)
def _attend(scores: Any, scale: Any, mask: Any, dropped: Any) -> None:
    """Replace scores (H B, L, L) by attention weights, 0 for later tokens. `scale` has a factor of log2(e)."""
    matrices, length, _ = scores.shape
    blocks = blocks_of(length)
    row, factors = np.zeros(blocks * BLOCK, np.float32), factors_of_row(mask, length)
    for m in range(matrices):
        for i in range(length):
            top, total = scores[m, i, 0], _ZERO
            for j in range(i + 1):
                top = max(top, scores[m, i, j])
            for j in range(i + 1):
                row[j] = (scores[m, i, j] - top) * scale
            for first in range(0, i + 1, LANES):
                store(row, first, exp2(load(row, first)))
            for j in range(i + 1):
                total += row[j]
            if mask.threshold > 0:
                draw_factors(mask, (m * length + i) * blocks, factors[: blocks_of(i + 1) * BLOCK])
            for j in range(i + 1):
                weight = row[j] / total
                scores[m, i, j] = weight
                dropped[m, i, j] = weight * factors[j]
            for j in range(i + 1, length):
                scores[m, i, j] = dropped[m, i, j] = _ZERO


@compiled(**FAST, nogil=True)
def _attend_back(grad: Any, weights: Any, dropped: Any, scale: Any) -> None:
    """Replace the gradient of `dropped` by that of the scores before scaling."""
    matrices, length, _ = grad.shape
    for m in range(matrices):
        for i in range(length):
            along = _ZERO
            for j in range(i + 1):
                along += dropped[m, i, j] * grad[m, i, j]
            for j in range(i + 1):
                grad[m, i, j] = (dropped[m, i, j] * grad[m, i, j] - weights[m, i, j] * along) * scale
            for j in range(i + 1, length):
                grad[m, i, j] = _ZERO
