"""The selective scan of Mamba (arXiv 2312.00752, section 3): one function, and the table of its implementations.

    h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t        h_{-1} = 0
    y_t = (C_t . h_t + D u_t) * silu(z_t)

A may be 0: the state then does not decay. All implementations are tested against `reference`
(`dmray.testing.scan_contract`). The implementation is selected once per process, device and dtype, and its name is
logged and recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from dmray.errors import MissingPackageError
from dmray.models.scan_reference import Scan

_log = logging.getLogger(__name__)


def _reference() -> Scan:
    from dmray.models.scan_reference import reference_scan

    return reference_scan


def _numba() -> Scan:
    from dmray.models.scan_numba import numba_scan

    return numba_scan


def _mamba_ssm() -> Scan:
    from dmray.models.scan_cuda import mamba_ssm_scan

    return mamba_ssm_scan()


def _triton() -> Scan:
    from dmray.models.scan_triton import triton_scan

    return triton_scan


SCAN_BACKENDS: Mapping[str, Callable[[], Scan]] = {
    "reference": _reference,  # any device and dtype; autograd through every step
    "numba": _numba,  # CPU, float32
    "mamba_ssm": _mamba_ssm,  # CUDA, float32; the authors' kernels, an extra
    "triton": _triton,  # CUDA, float32; comes with torch's CUDA builds
}
_load = cache(lambda backend: SCAN_BACKENDS[backend]())


def scan_backend(device: torch.device, dtype: torch.dtype, stacked: bool = False) -> str:
    """The name in `SCAN_BACKENDS` of the fastest implementation for parameters of this device and dtype.

    `stacked`: for those of several networks at once (`torch.func.vmap`, `dmray.training.Pack`). With
    `torch.use_deterministic_algorithms(True)` it is "reference".
    """
    name: str = _selected(device, dtype, stacked)
    return name


def backend_of(parameter: Tensor) -> str:
    """`scan_backend` for a parameter, which may be that of several networks inside `torch.func.vmap`."""
    return scan_backend(parameter.device, parameter.dtype, torch._C._functorch.is_batchedtensor(parameter))


def _selected(device: torch.device, dtype: torch.dtype, stacked: bool) -> str:
    return _select(device.type, dtype, torch.are_deterministic_algorithms_enabled(), stacked)


# All that torch.compiler.assume_constant_result does, which imports torch's compiler: seconds in every process.
_selected._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _select(device: str, dtype: torch.dtype, deterministic: bool, stacked: bool) -> str:
    if deterministic or dtype != torch.float32:
        backend = "reference"
    elif device == "cuda":
        backend = _triton_or_reference() if stacked else _on_cuda()
    else:
        backend = "numba" if device == "cpu" and not stacked else "reference"
    mode = f"{', stacked' if stacked else ''}{', deterministic' if deterministic else ''}"
    _log.info("selective scan: %s (%s, %s%s)", backend, device, str(dtype).removeprefix("torch."), mode)
    return backend


def _on_cuda() -> str:
    if find_spec("mamba_ssm"):
        try:
            _load("mamba_ssm")
            return "mamba_ssm"
        except MissingPackageError as broken:
            _log.warning("%s", broken)
    return _triton_or_reference()


def _triton_or_reference() -> str:
    return "triton" if find_spec("triton") else "reference"


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
    backend: str | None = None,
) -> Tensor:
    """Compute the scan (shapes: see `Scan`) with `backend`; None: with `scan_backend` of A's device and dtype.

    u, delta, B, C, z may have a narrower dtype than A (under autocast). The scan runs in the dtype of A, that of the
    parameters; the result has the dtype of u.

    Raises:
        ValueError: there are no tokens (L is 0).
        MissingPackageError: the package of `backend` cannot be imported.
    """
    if u.shape[1] == 0:
        raise ValueError("a scan needs at least one token")
    scan = _load(backend or backend_of(A))
    with torch.autocast(u.device.type, enabled=False):
        x, delta, B, C, z = (given.to(A.dtype) for given in (u, delta, B, C, z))
        return scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus).to(u.dtype)


def memoryless_scan(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    """The scan with h_{t-1} = 0 at each token: y_t = ((C_t . B_t) delta_t + D) u_t * silu(z_t).

    There is nothing to scan, so it is plain PyTorch on every device, whatever `scan_backend` is. Shapes and dtypes are
    those of `selective_scan`; the step size is softplus(delta + delta_bias).
    """
    with torch.autocast(u.device.type, enabled=False):
        x, delta, B, C, z = (given.to(D.dtype) for given in (u, delta, B, C, z))
        weight = (B * C).sum(-1, keepdim=True) * F.softplus(delta + delta_bias) + D
        return (weight * x * F.silu(z)).to(u.dtype)
