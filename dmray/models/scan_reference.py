"""The reference implementation of the selective scan in plain PyTorch, and the interface of all implementations.

Shapes: B windows, L tokens, D channels, N state size.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Scan(Protocol):
    """An implementation of the scan. The formula is in `dmray.models.selective_scan`.

    u, delta, z, result (B, L, D); A (D, N); B, C (B, L, N); D, delta_bias (D,). All have the same dtype and device and
    any strides; L is at least 1. With `delta_softplus` the step size is softplus(delta + delta_bias), else their sum.
    """

    def __call__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor,
        delta_bias: Tensor,
        delta_softplus: bool,
    ) -> Tensor: ...


def reference_scan(
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
    """See `Scan`. Any device and dtype; differentiable any number of times."""
    step = delta + delta_bias
    if delta_softplus:
        step = F.softplus(step)
    state = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for t in range(u.shape[1]):
        step_t = step[:, t, :, None]
        state = torch.exp(step_t * A) * state + step_t * u[:, t, :, None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1))
    return torch.addcmul(torch.stack(outputs, dim=1), u, D) * F.silu(z)
