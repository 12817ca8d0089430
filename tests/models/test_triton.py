"""The Triton kernels: on a GPU, or on a CPU in Triton's interpreter (`TRITON_INTERPRET=1`), in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from dmray.models.causal_conv import reference_conv_silu
from dmray.models.scan_reference import reference_scan
from dmray.testing.scan_contract import ScanContract, scan_inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEATS = 3
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None or not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"),
    reason="needs Triton and a GPU or TRITON_INTERPRET=1",
)


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes a while for each program."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        from dmray.models import scan_triton

        monkeypatch.setattr(scan_triton, "_BLOCK_FEW", 32)


@pytest.mark.gpu
@needs_triton
class TestScan(ScanContract):
    backend = "triton"
    sizes = ((1, 6, 40, 16), (1, 1, 1, 1), (2, 5, 5, 3))  # small: the interpreter is slow
    device = DEVICE

    def test_parts_of_wider_tensors_give_the_numbers_of_copies(self) -> None:
        from dmray.models.scan_triton import triton_scan

        u, delta, A, B, C, D, z, bias = (x.to(DEVICE) for x in scan_inputs((2, 5, 6, 3)))
        joined, selected = torch.cat([u, z], -1), torch.cat([B, C], -1)
        parts = (joined[..., :6], delta, A, selected[..., :3], selected[..., 3:], D, joined[..., 6:], bias, True)
        assert torch.equal(triton_scan(*parts), triton_scan(u, delta, A, B, C, D, z, bias, True))

    def test_stacked_networks_each_have_their_own_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from dmray.models.scan_triton import triton_scan

        monkeypatch.undo()  # with the programs that a GPU has
        inputs = stacked([scan_inputs((2, 3, 33, 3), seed=seed) for seed in range(SEATS)])
        compare_seats(partial(triton_scan, delta_softplus=True), partial(reference_scan, delta_softplus=True), inputs)


@pytest.mark.gpu
@needs_triton
class TestConvolution:
    @pytest.mark.parametrize("size", [(2, 5, 33, 4), (1, 70, 3, 4), (1, 1, 1, 2), (1, 3, 4, 1)])
    def test_outputs_and_gradients_are_pytorchs(self, size: tuple[int, int, int, int]) -> None:
        from dmray.models.conv_triton import triton_conv_silu

        compare_seats(triton_conv_silu, reference_conv_silu, stacked([conv_inputs(size, seed) for seed in (0, 1)]))

    def test_a_part_of_the_channels_is_not_copied_and_gives_the_same_numbers(self) -> None:
        from dmray.models.conv_triton import triton_conv_silu

        x, weight, bias = (given.to(DEVICE) for given in conv_inputs((2, 5, 6, 4), 0))
        wider = torch.cat([torch.full_like(x, torch.nan), x], -1)
        assert torch.equal(triton_conv_silu(wider[..., 6:], weight, bias), triton_conv_silu(x, weight, bias))


def conv_inputs(size: tuple[int, int, int, int], seed: int) -> list[Tensor]:
    windows, length, channels, taps = size
    draw = torch.Generator().manual_seed(seed)
    shapes = ((windows, length, channels), (channels, 1, taps), (channels,))
    return [torch.randn(*shape, generator=draw) for shape in shapes]


def stacked(seats: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(each).to(DEVICE) for each in zip(*seats, strict=True)]


def compare_seats(ours: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """One call under vmap gives the outputs and gradients of each seat; the outputs bit for bit as those of a call."""
    leaves = [x.requires_grad_() for x in inputs]
    y = vmap(ours)(*leaves)
    weights = torch.linspace(-1, 2, y.numel(), device=y.device).view_as(y)
    gradients = torch.autograd.grad((y * weights).sum(), leaves)
    for seat in range(len(y)):
        alone = [x[seat].detach().requires_grad_() for x in inputs]
        double = [x.detach().double().requires_grad_() for x in alone]
        expected = exact(*double)
        expected_gradients = torch.autograd.grad((expected * weights[seat]).sum(), double)
        assert torch.equal(y[seat], ours(*alone))
        for single, other in zip((y.detach(), *gradients), (expected.detach(), *expected_gradients), strict=True):
            assert float((single[seat] - other).norm()) <= 1e-5 * float(other.norm()) + 1e-9


@pytest.mark.chaos
@pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs Triton, and the tests above must not run here already",
)
def test_the_triton_kernels_pass_their_tests_in_tritons_interpreter() -> None:
    """Triton reads TRITON_INTERPRET when it is imported."""
    command = [sys.executable, "-m", "pytest", __file__, "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "gpu"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"\d+ passed", ended.stdout), ended.stdout
    assert "skipped" not in ended.stdout


@pytest.mark.skipif(find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1", reason="needs Triton")
def test_all_kernels_compile_for_a_gpu_that_is_not_here() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compiled

    from dmray.models import conv_triton, scan_triton

    numbers = {"row", "length", "channels", "size", "group"}
    for module, constants in (
        (scan_triton, {"SOFTPLUS": True, "KEEP": True, "BLOCK_D": 8, "BLOCK_N": 16}),
        (conv_triton, {"TAPS": 4, "BLOCK_T": 64, "BLOCK_D": 32}),
    ):
        for kernel in (module._forward, module._backward):
            constant = {name: value for name, value in constants.items() if name in kernel.arg_names}
            types = {
                name: "constexpr"
                if name in constant
                else "i32"
                if name in numbers or name.endswith("_row")
                else "*fp32"
                for name in kernel.arg_names
            }
            places = {(kernel.arg_names.index(name),): value for name, value in constant.items()}
            source = ASTSource(fn=kernel, signature=types, constexprs=places)
            assert compiled(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
