"""Deterministic algorithms: the same numbers bit for bit, where the hardware allows it."""

from __future__ import annotations

import os

import torch


def be_deterministic(deterministic: bool) -> None:
    """Turn deterministic algorithms on or off for this process. Call it before the first matrix product on a GPU.

    The choice of the selective scan depends on it (`dmray.models.scan_backend`). While it is on, an operation without a
    deterministic implementation raises.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(deterministic)
