"""The causal convolution with SiLU as compiled vector loops for one CPU core.

Shapes: B windows, L tokens, D channels, K taps; the filters are (K, D). The backward pass recomputes the convolution
instead of storing its result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmray.models.compiled import compiled
from dmray.models.flat_rows import flat, rows_of
from dmray.models.lanes import FAST, LANES, at, load, sigmoid, store

_ONE = np.float32(1)


def numba_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `dmray.models.causal_conv.causal_conv_silu`. CPU and float32 only; differentiable once; uses one thread."""
    missing = -x.shape[2] % LANES
    if missing:
        x, bias, weight = F.pad(x, (0, missing)), F.pad(bias, (0, missing)), F.pad(weight, (0, 0, 0, 0, 0, missing))
    y: Tensor = _Compiled.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return y[..., : y.shape[2] - missing].contiguous() if missing else y


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias = inputs
        taps, y = weight.squeeze(1).t().contiguous(), torch.empty(x.shape)
        _forward((*x.shape, len(taps)), rows_of(x), flat(taps), flat(bias), flat(y))
        ctx.save_for_backward(x, taps, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, bias = ctx.saved_tensors
        grad_x, grad_taps, grad_bias = torch.zeros(x.shape), torch.zeros(taps.shape), torch.zeros(bias.shape)
        grads = (flat(grad_x), flat(grad_taps), flat(grad_bias))
        _backward((*x.shape, len(taps)), rows_of(grad_y), rows_of(x), flat(taps), flat(bias), *grads)
        summed = (grad_x, grad_taps.t()[:, None], grad_bias)
        return tuple(x if needed else None for x, needed in zip(summed, ctx.needs_input_grad, strict=True))


@compiled(**FAST, nogil=True)
def _forward(sizes: Any, x: Any, taps: Any, bias: Any, y: Any) -> None:
    windows, length, channels, num_taps = sizes
    for b in range(windows):
        for t in range(length):
            for first in range(0, channels, LANES):
                total = load(bias, first)
                for j in range(max(0, num_taps - 1 - t), num_taps):
                    token = b * length + t - num_taps + 1 + j
                    total = total + load(taps, j * channels + first) * at(x, token, first)
                store(y, (b * length + t) * channels + first, total * sigmoid(total))


@compiled(**FAST, nogil=True)
def _backward(
    sizes: Any, grad_y: Any, x: Any, taps: Any, bias: Any, grad_x: Any, grad_taps: Any, grad_bias: Any
) -> None:
    windows, length, channels, num_taps = sizes
    for b in range(windows):
        for t in range(length):
            for first in range(0, channels, LANES):
                total, begin = load(bias, first), max(0, num_taps - 1 - t)
                for j in range(begin, num_taps):
                    token = b * length + t - num_taps + 1 + j
                    total = total + load(taps, j * channels + first) * at(x, token, first)
                opened = sigmoid(total)
                grad = at(grad_y, b * length + t, first)
                grad = grad * opened * (total * (_ONE - opened) + _ONE)
                store(grad_bias, first, load(grad_bias, first) + grad)
                for j in range(begin, num_taps):
                    token, tap = b * length + t - num_taps + 1 + j, j * channels + first
                    store(grad_taps, tap, load(grad_taps, tap) + grad * at(x, token, first))
                    row = token * channels + first
                    store(grad_x, row, load(grad_x, row) + grad * load(taps, tap))
