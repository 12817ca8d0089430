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
from dmray.models.flat_rows import flat, rows_in, rows_of
from dmray.models.lanes import FAST, LANES, at, load, put, sigmoid, store

_ONE = np.float32(1)


def numba_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `dmray.models.causal_conv.causal_conv_silu`. CPU and float32 only; differentiable once; uses one thread."""
    missing = -x.shape[2] % LANES
    if missing:
        x, bias, weight = F.pad(x, (0, missing)), F.pad(bias, (0, missing)), F.pad(weight, (0, 0, 0, 0, 0, missing))
    y: Tensor = _Compiled.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return y[..., : y.shape[2] - missing].contiguous() if missing else y


def convolve(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """y (B, L, D) for taps (K, D); D is a multiple of `LANES`."""
    y = torch.empty(x.shape)
    _forward((*x.shape, len(taps)), rows_of(x), flat(taps), flat(bias), flat(y))
    return y


def convolve_backward(grad_y: Tensor, x: Tensor, taps: Tensor, bias: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
    """Write the gradient of x into `grad_x`. Returns those of taps and bias."""
    grad_taps, grad_bias, last = torch.zeros(taps.shape), torch.zeros(bias.shape), torch.empty(len(taps) * LANES)
    given = rows_of(grad_y), rows_of(x), flat(taps), flat(bias), flat(last)
    _backward((*x.shape, len(taps)), *given, rows_in(grad_x), flat(grad_taps), flat(grad_bias))
    return grad_taps, grad_bias


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias = inputs
        taps = weight.squeeze(1).t().contiguous()
        ctx.save_for_backward(x, taps, bias)
        return convolve(x, taps, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, bias = ctx.saved_tensors
        grad_x = torch.empty(x.shape)
        grad_taps, grad_bias = convolve_backward(grad_y, x, taps, bias, grad_x)
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
    sizes: Any, grad_y: Any, x: Any, taps: Any, bias: Any, last: Any, grad_x: Any, grad_taps: Any, grad_bias: Any
) -> None:
    """From the last token to the first; `last` (K, LANES) has the gradients before SiLU of the K tokens from t on."""
    windows, length, channels, num_taps = sizes
    for b in range(windows):
        for first in range(0, channels, LANES):
            for t in range(length - 1, -1, -1):
                token, total, begin = b * length + t, load(bias, first), max(0, num_taps - 1 - t)
                for j in range(begin, num_taps):
                    total = total + load(taps, j * channels + first) * at(x, token - num_taps + 1 + j, first)
                opened = sigmoid(total)
                grad = at(grad_y, token, first)
                grad = grad * opened * (total * (_ONE - opened) + _ONE)
                store(last, t % num_taps * LANES, grad)
                store(grad_bias, first, load(grad_bias, first) + grad)
                for j in range(begin, num_taps):
                    tap = j * channels + first
                    store(grad_taps, tap, load(grad_taps, tap) + grad * at(x, token - num_taps + 1 + j, first))
                total = grad * load(taps, (num_taps - 1) * channels + first)
                for later in range(1, min(num_taps, length - t)):
                    tap = (num_taps - 1 - later) * channels + first
                    total = total + load(last, (t + later) % num_taps * LANES) * load(taps, tap)
                put(grad_x, token, first, total)
