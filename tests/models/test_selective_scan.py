from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmray.errors import MissingPackageError
from dmray.models.scan_reference import reference_scan
from dmray.models.selective_scan import SCAN_BACKENDS, scan_backend, selective_scan
from dmray.models.selective_scan import selective_scan as seam_function
from dmray.testing.scan_contract import ScanContract, scan_inputs

seam = sys.modules[seam_function.__module__]
sizes = st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 70), st.integers(1, 9))


@pytest.fixture(autouse=True)
def _nothing_chosen_before_or_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam, "_select", seam._select.__wrapped__)
    monkeypatch.setattr(seam, "_load", seam._load.__wrapped__)


class TestReference(ScanContract):
    backend = "reference"


class TestNumba(ScanContract):
    backend = "numba"


class TestMambaSsmsLayout(ScanContract):
    """The wrapper, with the package's function replaced by what its documentation says that it computes."""

    backend = "mamba_ssm"

    @pytest.fixture(autouse=True)
    def _replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("selective_scan_cuda", "mamba_ssm", "mamba_ssm.ops"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
        interface.selective_scan_fn = tokens_last  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, interface.__name__, interface)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("selective_scan_cuda") is None, reason="needs mamba-ssm and a GPU"
)
class TestMambaSsmsKernels(ScanContract):
    """The package's own kernels. They sum the gradients of B and C in no fixed order."""

    backend = "mamba_ssm"
    device = "cuda"


def tokens_last(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor, softplus: bool
) -> Tensor:
    """u, delta, z (B, D, L); B, C (B, N, L)."""
    assert u.stride(-1) == 1
    u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
    return reference_scan(u, delta, A, B, C, D, z, bias, softplus).transpose(1, 2)


def test_the_reference_equals_the_papers_recurrence() -> None:
    u, delta, A, B, C, D, z, bias = scan_inputs((2, 6, 3, 4), torch.float64)
    step = torch.log1p((delta + bias).exp())
    y = reference_scan(u, delta, A, B, C, D, z, bias, True)
    for b in range(2):
        for d in range(3):
            h = torch.zeros(4, dtype=torch.float64)
            for t in range(6):
                h = (step[b, t, d] * A[d]).exp() * h + step[b, t, d] * B[b, t] * u[b, t, d]
                expected = (C[b, t] @ h + D[d] * u[b, t, d]) * z[b, t, d] * torch.sigmoid(z[b, t, d])
                torch.testing.assert_close(y[b, t, d], expected, rtol=1e-12, atol=1e-12)


def test_the_reference_passes_gradcheck() -> None:
    leaves = [x.requires_grad_() for x in scan_inputs((2, 4, 3, 2), torch.float64)]
    assert torch.autograd.gradcheck(partial(reference_scan, delta_softplus=True), leaves)


@given(sizes, st.integers(0, 2**16))
@example((1, 1, 1, 2), 1)  # D u and C h cancel to a thousandth
@settings(max_examples=25, deadline=None)
def test_the_compiled_scan_equals_the_reference_at_any_size(size: tuple[int, int, int, int], seed: int) -> None:
    with torch.no_grad():
        u, delta, A, B, C, D, z, bias = scan_inputs(size, seed=seed)
        ours = selective_scan(u, delta, A, B, C, D, z, bias, True, "numba")
        u, delta, A, B, C, D, z, bias = (x.double() for x in (u, delta, A, B, C, D, z, bias))
        exact = reference_scan(u, delta, A, B, C, D, z, bias, True)
        # The terms of each sum without their signs: where they cancel, rounding is relative to them, not to the sum.
        terms = reference_scan(u.abs(), delta, A, B.abs(), C.abs(), D.abs(), z, bias, True)
    assert float((ours - exact).norm()) <= 1e-5 * float(terms.norm())


@pytest.mark.parametrize("exponent", [-1e4, -88.5, -86.9, -20.0, -1.0, -1e-3, -1e-7, 0.0, 1.0, 20.0, 80.0])
def test_the_compiled_decay_is_as_exact_as_single_precision_allows(exponent: float) -> None:
    # Two tokens, one channel, one state: C_1 h_1 = exp(delta_1 A) * delta_0 u_0 with u_1 = 0, read through a gate.
    u, delta, z = torch.tensor([[[1.0], [0.0]]]), torch.ones(1, 2, 1), torch.full((1, 2, 1), 30.0)
    one, zero = torch.ones(1, 2, 1), torch.zeros(1)
    y = selective_scan(u, delta, torch.tensor([[exponent]]), one, one, zero, z, zero, False, "numba")
    expected = float(torch.tensor(exponent, dtype=torch.float64).exp())
    # an exponent of x is itself rounded, by |x| 2^-24 in each of its two factors' products
    assert float(y[0, 1, 0]) / 30 == pytest.approx(expected, rel=(2 + abs(exponent)) * 1.2e-7, abs=2e-38)


@pytest.mark.parametrize("raw", [-80.0, -20.0, -7.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 7.0, 19.9, 20.1, 80.0])
def test_the_compiled_softplus_is_exact_for_small_and_large_step_sizes(raw: float) -> None:
    # One token: y = softplus(delta) u B C, read through a gate.
    u, z, one, zero = torch.ones(1, 1, 1), torch.full((1, 1, 1), 30.0), torch.ones(1, 1, 1), torch.zeros(1)
    y = selective_scan(u, torch.tensor([[[raw]]]), -one[0], one, one, zero, z, zero, True, "numba")
    expected = float(torch.tensor(raw, dtype=torch.float64).exp().log1p())
    assert float(y) / 30 == pytest.approx(expected, rel=(4 + max(-raw, 0)) * 1.2e-7)


def test_only_a_fraction_of_the_states_is_stored_for_the_backward_pass() -> None:
    leaves = [x.requires_grad_() for x in scan_inputs((2, 64, 64, 16))]
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        SCAN_BACKENDS["numba"]()(*leaves, True)
    assert max(x.numel() for x in kept) <= 2 * 64 * 64 * 16 / 8


def test_float32_on_a_cpu_uses_the_compiled_scan_and_other_dtypes_the_reference() -> None:
    assert scan_backend(torch.device("cpu"), torch.float32) == "numba"
    assert scan_backend(torch.device("cpu"), torch.float64) == "reference"


def test_a_gpu_uses_mamba_ssm_if_it_works_else_triton_else_the_reference(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there: set[str] = set()
    monkeypatch.setattr(seam, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(seam, "_load", lambda backend: None)

    def chosen() -> str:
        return scan_backend(torch.device("cuda"), torch.float32)

    assert chosen() == "reference"
    there.add("triton")
    assert chosen() == "triton"
    there.add("mamba_ssm")
    assert chosen() == "mamba_ssm"

    def broken(backend: str) -> None:
        raise MissingPackageError("no selective_scan_cuda")

    monkeypatch.setattr(seam, "_load", broken)
    assert chosen() == "triton"
    assert "no selective_scan_cuda" in caplog.text


def test_deterministic_torch_uses_the_reference(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    torch.use_deterministic_algorithms(True)
    try:
        assert scan_backend(torch.device("cpu"), torch.float32) == "reference"
    finally:
        torch.use_deterministic_algorithms(False)
    assert "selective scan: reference (cpu, float32, deterministic)" in caplog.text


@pytest.mark.parametrize("failure", [ImportError("no module named selective_scan_cuda"), OSError("libcudart.so.12")])
def test_mamba_ssm_that_cannot_be_imported_is_an_error_that_says_how_to_install_it(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise failure

    packages = ("selective_scan_cuda", "mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    for name in packages:
        monkeypatch.setitem(sys.modules, name, Broken(name))
    with pytest.raises(MissingPackageError, match=r'pip install --no-build-isolation "dmray\[mamba\]"') as raised:
        SCAN_BACKENDS["mamba_ssm"]()
    assert "\n" not in str(raised.value)


def test_mamba_ssm_without_its_kernels_is_an_error_before_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = tokens_last  # type: ignore[attr-defined]
    for module in (ModuleType("mamba_ssm"), ModuleType("mamba_ssm.ops"), interface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(MissingPackageError, match="selective_scan_cuda"):
        SCAN_BACKENDS["mamba_ssm"]()
