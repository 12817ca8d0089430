"""The selective scan by the authors' CUDA kernels: package mamba-ssm, an extra.

Imported only where it is asked for, or where parameters lie on a GPU and the package is installed. Never run by our
tests on a GPU: they hold the layout that we hand over against the reference, with the package's function replaced.
"""

from __future__ import annotations

from importlib import import_module

from torch import Tensor

from dmray.errors import MissingPackageError
from dmray.models.scan_reference import Scan


def mamba_ssm_scan() -> Scan:
    """See `dmray.models.scan_reference.Scan`. CUDA and float32 only; differentiable once; its gradients of B and C add
    up in no fixed order.

    Raises:
        MissingPackageError: mamba-ssm cannot be imported.
    """
    try:
        import_module("selective_scan_cuda")  # newer releases import without it and fail at the first call
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as cause:
        first_line = (str(cause).splitlines() or [""])[0]
        raise MissingPackageError(
            f"mamba-ssm cannot be imported ({type(cause).__name__}: {first_line}); on a machine with a GPU and nvcc: "
            'MAMBA_KEEP_CUDA_BUILD=TRUE pip install "dmray[mamba]" --no-build-isolation'
        ) from cause

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
        u, delta, B, C, z = (x.transpose(1, 2).contiguous() for x in (u, delta, B, C, z))  # tokens come last there
        y: Tensor = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        return y.transpose(1, 2)

    return scan
