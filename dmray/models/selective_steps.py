"""The selective scan's recurrence, carried on from a state, in plain PyTorch: any device and dtype.

    h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t        y_t = C_t . h_t

Shapes: B rows, n tokens, I channels, N state size. The state has its channels last, (B, N, I), so that loops run along
memory. On a CPU in float32 the compiled steps (`dmray.models.steps_numba`) take its place.
"""

from __future__ import annotations

import torch
from torch import Tensor


def selective_steps(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, hidden: Tensor) -> Tensor:
    """y (B, n, I) for u, delta (B, n, I), A (I, N), B, C (B, n, N); `hidden` (B, N, I) moves on in place.

    Deterministic. Has no gradients.
    """
    rates, outputs = A.t(), []
    for t in range(u.shape[1]):
        step = delta[:, t, None, :]
        hidden.mul_(torch.exp(step * rates)).add_(B[:, t, :, None] * (step * u[:, t, None, :]))
        outputs.append(torch.matmul(C[:, t, None, :], hidden))
    return torch.cat(outputs, dim=1)
