"""The short causal convolution before Mamba's scan, one filter per channel, followed by SiLU.

    y_t = silu(bias + sum_j weight_j x_{t - K + 1 + j})        x before the first token is 0

Shapes: B windows, L tokens, D channels, K taps.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from dmray.models.selective_scan import backend_of

_HAS_TRITON = find_spec("triton") is not None  # not asked for at each call: torch.compile could not follow


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, L, D) -> (B, L, D), contiguous, in the dtype of x; weight (D, 1, K) and bias (D,) as in `nn.Conv1d`.

    Uses the compiled implementation (numba, Triton) where the scan does (`backend_of`).
    """
    backend = backend_of(weight)
    if backend == "numba":
        from dmray.models.conv_numba import numba_conv_silu as compiled
    elif backend != "reference" and _HAS_TRITON:
        from dmray.models.conv_triton import triton_conv_silu as compiled
    else:
        return reference_conv_silu(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return compiled(x.to(weight.dtype), weight, bias).to(x.dtype)


def reference_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`causal_conv_silu` with PyTorch's operations: any device and dtype; autocast applies to the convolution."""
    taps = weight.shape[-1]
    y = F.conv1d(x.transpose(1, 2), weight, bias, padding=taps - 1, groups=weight.shape[0])[..., : x.shape[1]]
    return F.silu(y.transpose(1, 2).contiguous())
