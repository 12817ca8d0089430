"""The selective scan's recurrence, carried on from a state: what acting needs, where training needs the whole scan.

    h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t        y_t = C_t . h_t

Shapes: B rows, n tokens, I channels, N state size. The CPU has a compiled loop; everything else is PyTorch. The state
has its channels last, (B, N, I): the innermost loop then runs along memory and becomes vector instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

_FAST = {"contract", "reassoc", "nsz", "arcp"}  # sums may be reordered; not-a-number stays one
_LOG2_E = np.float32(1.44269504088896341)
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_LOWEST, _HIGHEST = np.float32(-126), np.float32(127)
# 2^f on |f| <= 1/2 by its Taylor series; the relative error is below 2e-7
_C1, _C2, _C3 = np.float32(0.69314718056), np.float32(0.24022650696), np.float32(0.05550410866)
_C4, _C5, _C6 = np.float32(0.00961812911), np.float32(0.00133335581), np.float32(0.00015403530)


def selective_steps(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, hidden: Tensor) -> Tensor:
    """y (B, n, I) for u, delta (B, n, I), A (I, N), B, C (B, n, N); `hidden` (B, N, I) moves on in place.

    Deterministic. Has no gradients.
    """
    assert hidden.shape == (u.shape[0], *A.t().shape), "a state of another shape"  # compiled code does not check
    assert hidden.is_contiguous(), "the state is written in place"
    if hidden.device.type == "cpu" and hidden.dtype == torch.float32:
        y = torch.empty(u.shape)
        arrays = (x.detach().contiguous().numpy() for x in (u, delta, A.t() * float(_LOG2_E), B, C))
        _steps(*arrays, hidden.numpy(), y.numpy())
        return y
    return torch_steps(u, delta, A, B, C, hidden)


def torch_steps(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, hidden: Tensor) -> Tensor:
    """`selective_steps` on any device, in any dtype."""
    rates, outputs = A.t(), []
    for t in range(u.shape[1]):
        step = delta[:, t, None, :]
        hidden.mul_(torch.exp(step * rates)).add_(B[:, t, :, None] * (step * u[:, t, None, :]))
        outputs.append(torch.matmul(C[:, t, None, :], hidden))
    return torch.cat(outputs, dim=1)


@intrinsic  # type: ignore[untyped-decorator]
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@njit(fastmath=_FAST, inline="always")  # type: ignore[untyped-decorator]
def _exp2(x: Any) -> Any:
    x = min(max(x, _LOWEST), _HIGHEST)
    k = np.floor(x + _HALF)
    f = x - k
    p = (((((_C6 * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _ONE
    return p * _float_of_bits((np.int32(k) + np.int32(127)) << np.int32(23))


@njit(fastmath=_FAST, nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _steps(u: Any, delta: Any, A: Any, B: Any, C: Any, hidden: Any, y: Any) -> None:
    rows, tokens, channels = u.shape
    entering = np.empty(channels, np.float32)
    for b in range(rows):
        for t in range(tokens):
            for i in range(channels):
                entering[i] = delta[b, t, i] * u[b, t, i]
                y[b, t, i] = _ZERO
            for n in range(A.shape[0]):
                B_n, C_n = B[b, t, n], C[b, t, n]
                for i in range(channels):
                    h = _exp2(delta[b, t, i] * A[n, i]) * hidden[b, n, i] + entering[i] * B_n
                    hidden[b, n, i] = h
                    y[b, t, i] += C_n * h
