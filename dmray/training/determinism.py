"""Deterministic algorithms: the same numbers bit for bit, where the hardware allows it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def be_deterministic(deterministic: bool) -> None:
    """Turn deterministic algorithms on or off for this process. Call it before the first matrix product on a GPU.

    The choice of the selective scan depends on it (`dmray.models.scan_backend`). While it is on, an operation without a
    deterministic implementation raises.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(deterministic)


@contextmanager
def restore_torch_settings() -> Iterator[None]:
    """Afterwards this process has as many threads, and is as deterministic, as before."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        be_deterministic(deterministic)
