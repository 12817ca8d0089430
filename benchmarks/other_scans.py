"""The selective scans in plain PyTorch that other packages run where no CUDA kernel does, as `Scan`s of ours."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any
from unittest.mock import patch

from torch import Tensor

from dmray.models.scan_reference import Scan


def transformers_scan() -> Scan:
    """What transformers' Mamba runs; `ImportError` where it is not installed."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    return _tokens_last(mamba_selective_scan)


def mamba_ssm_reference_scan() -> Scan:
    """mamba-ssm's `selective_scan_ref`: on a CPU the authors' networks run by nothing else.

    The package imports its CUDA extension before it; an empty module stands for that meanwhile.
    """
    with patch.dict(sys.modules, {"selective_scan_cuda": ModuleType("selective_scan_cuda")}):
        from mamba_ssm.ops.selective_scan_interface import selective_scan_ref
    return _tokens_last(selective_scan_ref)


def _tokens_last(theirs: Any) -> Scan:
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
        u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
        y: Tensor = theirs(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus)
        return y.transpose(1, 2)

    return scan
