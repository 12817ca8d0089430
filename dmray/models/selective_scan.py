"""The selective scan of Mamba (arXiv 2312.00752, section 3) behind one function, and the table of its implementations.

    h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t        h_{-1} = 0
    y_t = (C_t . h_t + D u_t) * silu(z_t)

An implementation is any function with `selective_scan`'s nine arguments; `loop` is the one that the others are tested
against.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dmray.models.scan_numba import numba_recurrence
from dmray.models.scan_torch import Recurrence, loop_recurrence, stored_recurrence


class Scan(Protocol):
    """An implementation of the scan. Shapes: B windows, L tokens, D channels, N state size.

    u, delta, z (B, L, D); A (D, N); B, C (B, L, N); D, delta_bias (D,). Returns (B, L, D) in the dtype of `u`; the
    recurrence itself runs in the dtype of `A` (the parameters': float32 under autocast).
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


def scan_around(recurrence: Recurrence) -> Scan:
    """The whole scan, its recurrence by `recurrence` and what is around it (step size, skip, gate) by PyTorch."""

    def scan(
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
        with torch.autocast(u.device.type, enabled=False):
            wide = A.dtype
            x, step = u.to(wide), delta.to(wide) + delta_bias
            if delta_softplus:
                step = F.softplus(step)
            y = recurrence(x, step, A, B.to(wide), C.to(wide))
            return (torch.addcmul(y, x, D) * F.silu(z.to(wide))).to(u.dtype)

    return scan


SCAN_BACKENDS: Mapping[str, Scan] = {
    "loop": scan_around(loop_recurrence),  # the definition; autograd through every step
    "torch": scan_around(stored_recurrence),  # any device and dtype
    "numba": scan_around(numba_recurrence),  # CPU, float32
}


def default_scan_backend(device: torch.device, dtype: torch.dtype) -> str:
    """The fastest backend for parameters of this device and dtype."""
    return "numba" if device.type == "cpu" and dtype == torch.float32 else "torch"


def selective_scan(
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
    """The scan (shapes: see `Scan`) by the default backend for A's device and dtype."""
    scan = SCAN_BACKENDS[default_scan_backend(A.device, A.dtype)]
    return scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
