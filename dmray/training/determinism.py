"""Deterministic algorithms, and the precision of a GPU's products."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def be_deterministic(deterministic: bool) -> None:
    """Turn deterministic algorithms on or off for this process. Call it before the first matrix product on a GPU.

    The choice of the selective scan depends on it (`dmray.models.scan_backend`). While it is on, an operation without a
    deterministic implementation raises. Products and LSTMs are float32 afterwards, apart from `tf32_allowed`; by
    default PyTorch lets cuDNN round the inputs of an LSTM to TF32 (10 bits of mantissa).
    """
    _allow_tf32(False)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    if deterministic or torch.are_deterministic_algorithms_enabled():  # the call loads torch's compiler, for seconds
        torch.use_deterministic_algorithms(deterministic)


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Within it, a GPU may round the inputs of products and LSTMs to TF32, or may not; the sums are float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    _allow_tf32(allowed)
    try:
        yield
    finally:
        _allow_tf32(before)


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def restore_torch_settings() -> Iterator[None]:
    """Afterwards this process has as many threads, and is as deterministic and as precise, as before."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    products, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        be_deterministic(deterministic)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, cudnn
