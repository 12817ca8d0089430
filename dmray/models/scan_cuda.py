"""The selective scan with the authors' CUDA kernels, from the optional package mamba-ssm.

It is used if it is requested by name, or if the parameters are on a GPU and the package is installed. Our tests do not
run it on a GPU: they replace the package's function and compare the arguments that we pass to it with the reference.
"""

from __future__ import annotations

from importlib import import_module

from torch import Tensor

from dmray.errors import MissingPackageError
from dmray.models.scan_reference import Scan


def mamba_ssm_scan() -> Scan:
    """Return mamba-ssm's scan as a `dmray.models.scan_reference.Scan`: CUDA and float32 only, differentiable once.

    It sums the gradients of B and C in no fixed order, so their last bits vary.

    Raises:
        MissingPackageError: mamba-ssm cannot be imported.
    """
    try:
        import_module("selective_scan_cuda")  # newer releases import without it and fail at the first call
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as cause:
        first_line = (str(cause).splitlines() or [""])[0]
        raise MissingPackageError(
            f"mamba-ssm cannot be imported ({type(cause).__name__}: {first_line}); it is built where there is "
            'nvcc: after torch and causal-conv1d, pip install --no-build-isolation "dmray[mamba]" (docs/install.md)'
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
        # the last axis of mamba-ssm's inputs is tokens
        u, delta, B, C, z = (x.transpose(1, 2).contiguous() for x in (u, delta, B, C, z))
        y: Tensor = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        return y.transpose(1, 2)

    return scan
