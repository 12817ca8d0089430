"""Bit-for-bit repeatable numbers where the hardware allows them."""

from __future__ import annotations

import os

import torch


def be_deterministic(deterministic: bool) -> None:
    """Use deterministic algorithms only in this process, or no longer; before its first matrix product on a GPU.

    The selective scan follows (`dmray.models.scan_backend`). An operation that has no deterministic form raises.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(deterministic)
