"""A block of the causal transformer, forward and backward pass, for one CPU core.

The matrix products are PyTorch's. Everything between them is compiled loops that take one pass over the numbers:
LayerNorm; bias and ReLU; bias, dropout and residual addition; scale, causal softmax and dropout of attention weights.
They compute what `dmray.models.causal_transformer` does with PyTorch's operations, to rounding.

Shapes: B windows, L tokens, D width, H heads, E = D / H; R = B L rows. Attention weights are (H, B, L, L): for each
head one batched product. Masks of dropout are drawn again in the backward pass (`dmray.models.dropout_numba`), except
that of the attention weights, which are stored before and after dropout.
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
from dmray.models.dropout_numba import BLOCK, blocks_of, draw_factors, drop, new_masks
from dmray.models.lanes import FAST, LANES, LOG2_E, exp2, load, store

_ZERO, _ONE = np.float32(0), np.float32(1)


class BlockParameters(NamedTuple):
    """The parameters of a block; weights (outputs, inputs) as in `nn.Linear`."""

    norm_1: Tensor
    norm_1_bias: Tensor
    attention: Tensor  # into query, key, value
    attention_bias: Tensor
    joined: Tensor  # from the heads back onto the residual path
    joined_bias: Tensor
    norm_2: Tensor
    norm_2_bias: Tensor
    hidden: Tensor  # into the MLP
    hidden_bias: Tensor
    out: Tensor  # from the MLP back onto the residual path
    out_bias: Tensor


class BlockSetting(NamedTuple):
    """What a block computes beside its parameters."""

    n_head: int
    activation: Activation
    epsilon: float  # of LayerNorm
    rates: tuple[float, float, float]  # of dropout: attention weights, attention's branch, MLP's branch


class _Kept(NamedTuple):
    """What the backward pass needs of the forward pass."""

    x: Tensor  # (R, D), as all without a shape
    statistics_1: Tensor  # (R, 2): mean and 1 / deviation
    normed_1: Tensor
    qkv: Tensor  # (B, L, 3, H, E)
    weights: Tensor  # (H, B, L, L)
    dropped: Tensor  # the weights after dropout
    mixed: Tensor
    middle: Tensor  # the residual path between attention and MLP
    statistics_2: Tensor
    normed_2: Tensor
    hidden: Tensor  # (R, 4 D) before the activation; not kept for ReLU
    active: Tensor  # (R, 4 D) after it


def numba_block(x: Tensor, parameters: BlockParameters, setting: BlockSetting) -> Tensor:
    """The block's output (B, L, D). CPU and float32 only; differentiable once; the loops use one thread.

    Draws from torch's global RNG if any rate of dropout is above 0.
    """
    assert all(given.dtype == torch.float32 for given in (x, *parameters)), "needs float32"
    y: Tensor = _Block.apply(x, setting, *parameters)  # type: ignore[no-untyped-call]
    return y


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        given, setting, *parameters = inputs
        p = BlockParameters(*parameters)
        ctx.setting, ctx.masks = setting, new_masks(*setting.rates)
        to_weights, to_attended, to_out = ctx.masks
        windows, length, width = given.shape
        x = given.contiguous().view(-1, width)

        normed_1, statistics_1 = _normalised(x, p.norm_1, p.norm_1_bias, setting.epsilon)
        qkv = torch.addmm(p.attention_bias, normed_1, p.attention.t()).view(windows, length, 3, setting.n_head, -1)
        queries, keys, values = (_heads(part) for part in qkv.unbind(2))
        weights = torch.empty(setting.n_head, windows, length, length)
        for query, key, out in zip(queries, keys, weights, strict=True):
            torch.bmm(query, key.mT, out=out)
        dropped = torch.empty_like(weights) if to_weights.drops else weights
        _attend(_matrices(weights), _scale(qkv) * LOG2_E, to_weights, _matrices(dropped))
        mixed = _side_by_side([torch.bmm(left, right) for left, right in zip(dropped, values, strict=True)])

        middle = torch.mm(mixed, p.joined.t())
        _join(_rows(x), _rows(middle), _rows(p.joined_bias), to_attended)
        normed_2, statistics_2 = _normalised(middle, p.norm_2, p.norm_2_bias, setting.epsilon)
        hidden = torch.mm(normed_2, p.hidden.t())
        if setting.activation == "relu":
            _add_bias_relu(_rows(hidden), _rows(p.hidden_bias))
            active = hidden
        else:
            active = F.gelu(hidden.add_(p.hidden_bias))
        out = torch.mm(active, p.out.t())
        _join(_rows(middle), _rows(out), _rows(p.out_bias), to_out)

        kept = _Kept(x, statistics_1, normed_1, qkv, weights, dropped, mixed, middle, statistics_2, normed_2, hidden, active)
        ctx.save_for_backward(*parameters, *kept)
        return out.view(given.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        count = len(BlockParameters._fields)
        p, kept = BlockParameters(*ctx.saved_tensors[:count]), _Kept(*ctx.saved_tensors[count:])
        needed = BlockParameters(*ctx.needs_input_grad[2:])
        _, to_attended, to_out = ctx.masks
        above = grad_y.contiguous().view(kept.x.shape)

        # from here on `grad` is the gradient of what the next line of the forward pass, read backwards, has computed
        grad, out_bias = _dropped(above, to_out)
        out = _of_weight(needed.out, grad, kept.active)
        inner = torch.mm(grad, p.out)
        if ctx.setting.activation == "relu":
            hidden_bias = torch.zeros_like(p.hidden_bias)
            _relu_back(_rows(inner), _rows(kept.active), _rows(hidden_bias))
        else:
            inner = torch.ops.aten.gelu_backward(inner, kept.hidden)
            hidden_bias = inner.sum(0)
        hidden = _of_weight(needed.hidden, inner, kept.normed_2)
        torch.mm(inner, p.hidden, out=grad)
        norm_2, norm_2_bias = _normalise_back(grad, above, kept.middle, kept.statistics_2, p.norm_2)

        attended, joined_bias = _dropped(grad, to_attended)
        joined = _of_weight(needed.joined, attended, kept.mixed)
        qkv = _attention_back(torch.mm(attended, p.joined), kept)
        attention, attention_bias = _of_weight(needed.attention, qkv, kept.normed_1), qkv.sum(0)
        torch.mm(qkv, p.attention, out=attended)
        norm_1, norm_1_bias = _normalise_back(attended, grad, kept.x, kept.statistics_1, p.norm_1)

        grads = BlockParameters(
            norm_1, norm_1_bias, attention, attention_bias, joined, joined_bias,
            norm_2, norm_2_bias, hidden, hidden_bias, out, out_bias,
        )  # fmt: skip
        return attended.view(grad_y.shape), None, *(x if used else None for x, used in zip(grads, needed, strict=True))


def _attention_back(grad: Tensor, kept: _Kept) -> Tensor:
    """The gradient (R, 3 D) of query, key and value from that of `mixed`."""
    grads, queries, keys, values = (_heads(x) for x in (grad.view_as(kept.qkv[:, :, 0]), *kept.qkv.unbind(2)))
    scores = torch.empty_like(kept.weights)
    for above, value, out in zip(grads, values, scores, strict=True):
        torch.bmm(above, value.mT, out=out)
    _attend_back(_matrices(scores), _matrices(kept.weights), _matrices(kept.dropped), _scale(kept.qkv))
    return _side_by_side(
        [torch.bmm(score, key) for score, key in zip(scores, keys, strict=True)]
        + [torch.bmm(score.mT, query) for score, query in zip(scores, queries, strict=True)]
        + [torch.bmm(weight.mT, above) for weight, above in zip(kept.dropped, grads, strict=True)]
    )


def _heads(x: Tensor) -> tuple[Tensor, ...]:
    """(B, L, H, E) as H times (B, L, E)."""
    return x.unbind(2)


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """Tensors (B, L, E) as one (R, E times their number)."""
    return (torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]).flatten(0, 1)


def _scale(qkv: Tensor) -> np.float32:
    return np.float32(1 / math.sqrt(qkv.shape[-1]))


def _of_weight(needed: bool, grad: Tensor, inputs: Tensor) -> Tensor | None:
    return torch.mm(grad.t(), inputs) if needed else None


def _rows(x: Tensor) -> np.ndarray:
    numbers: np.ndarray = x.detach().contiguous().numpy()
    return numbers


def _matrices(x: Tensor) -> np.ndarray:
    return _rows(x.flatten(0, 1))


def _dropped(x: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
    """x with the mask applied, and its sums over the rows."""
    out, sums = torch.empty_like(x), x.new_zeros(x.shape[1])
    drop(_rows(x), mask, _rows(out), _rows(sums))
    return out, sums


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    normed, statistics = torch.empty_like(x), x.new_empty(len(x), 2)
    _normalise(_rows(x), (_rows(weight), _rows(bias), np.float32(epsilon)), _rows(normed), _rows(statistics))
    return normed, statistics


def _normalise_back(
    grad: Tensor, above: Tensor, x: Tensor, statistics: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Replace `grad`, of the normed x, by the gradient of x itself plus `above`. Returns those of weight and bias."""
    sums, bias_sums = torch.zeros_like(weight), torch.zeros_like(weight)
    layer = (_rows(x), _rows(statistics), _rows(weight))
    _normalise_backward(_rows(grad), _rows(above), layer, _rows(sums), _rows(bias_sums))
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
def _normalise_backward(grad: Any, above: Any, layer: Any, sums: Any, bias_sums: Any) -> None:
    x, statistics, weight = layer
    rows, width = x.shape
    count = np.float32(width)
    for r in range(rows):
        mean, inverse = statistics[r, 0], statistics[r, 1]
        total, along = _ZERO, _ZERO
        for j in range(width):
            g, normed = grad[r, j], (x[r, j] - mean) * inverse
            sums[j] += g * normed
            bias_sums[j] += g
            total += g * weight[j]
            along += g * weight[j] * normed
        total, along = total / count, along / count
        for j in range(width):
            normed = (x[r, j] - mean) * inverse
            grad[r, j] = above[r, j] + inverse * (grad[r, j] * weight[j] - total - normed * along)


@compiled(**FAST, nogil=True)
def _join(residual: Any, branch: Any, bias: Any, mask: Any) -> None:
    """branch = residual + dropout(branch + bias)."""
    rows, width = branch.shape
    blocks = blocks_of(width)
    factors = np.full(blocks * BLOCK, mask.scale)
    for r in range(rows):
        if mask.threshold > 0:
            draw_factors(mask, r * blocks, factors)
        for j in range(width):
            branch[r, j] = residual[r, j] + (branch[r, j] + bias[j]) * factors[j]


@compiled(**FAST, nogil=True)
def _add_bias_relu(x: Any, bias: Any) -> None:
    rows, width = x.shape
    for r in range(rows):
        for j in range(width):
            y = x[r, j] + bias[j]
            x[r, j] = _ZERO if y <= _ZERO else y  # NaN stays NaN


@compiled(**FAST, nogil=True)
def _relu_back(grad: Any, active: Any, sums: Any) -> None:
    rows, width = grad.shape
    for r in range(rows):
        for j in range(width):
            g = _ZERO if active[r, j] <= _ZERO else grad[r, j]
            grad[r, j] = g
            sums[j] += g


@compiled(**FAST, nogil=True)
def _attend(scores: Any, scale: Any, mask: Any, dropped: Any) -> None:
    """Replace scores (H B, L, L) by attention weights, 0 for later tokens. `scale` has a factor of log2(e)."""
    matrices, length, _ = scores.shape
    blocks = blocks_of(length)
    row, factors = np.zeros(blocks * BLOCK, np.float32), np.full(blocks * BLOCK, mask.scale)
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
