from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmray.models import BACKBONES, MambaConfig
from dmray.models.lanes import LANES
from dmray.models.mamba import Mamba
from dmray.models.mamba_block import Block


def block_of(seed: int = 0, **fields: Any) -> Block:
    """A block whose inner width is whole vectors, with weights that are all different from their initial values."""
    torch.manual_seed(seed)
    block = Block(MambaConfig.model_validate({"d_model": LANES, **fields}))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return block


def passes(block: Block, residual: Tensor, grad: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of all parameters."""
    residual = residual.detach().to(grad.dtype).requires_grad_()
    output = block(residual)
    return [output.detach(), *torch.autograd.grad(output, [residual, *block.parameters()], grad)]


@given(
    st.integers(1, 3), st.integers(1, 20), st.sampled_from(["learned", "shared", "constant-step"]), st.integers(0, 9)
)
@settings(max_examples=15, deadline=None)
def test_output_and_gradients_are_those_of_float64(windows: int, length: int, evolution: str, seed: int) -> None:
    block = block_of(seed, evolution=evolution)
    residual, grad = torch.randn(windows, length, LANES), torch.randn(windows, length, LANES)
    assert block.is_compiled(residual)
    exact = passes(copy.deepcopy(block).double(), residual, grad.double())
    for got, wanted in zip(passes(block, residual, grad), exact, strict=True):
        largest = max(float(wanted.abs().max()), 1e-3)
        assert float((got.double() - wanted).abs().max()) < 2e-5 * largest


@pytest.mark.parametrize("length", [1, 2, 7])
def test_the_last_output_is_that_of_all_tokens(length: int) -> None:
    block, residual = block_of(), torch.randn(3, length, LANES)
    with torch.no_grad():
        torch.testing.assert_close(block.last(residual), block(residual)[:, -1], rtol=1e-5, atol=1e-5)


def test_inputs_that_are_no_rows_of_one_array_are_taken_as_they_are() -> None:
    block, wide = block_of(), torch.randn(2, LANES, 6, 2)
    residual = wide[..., 0].transpose(1, 2)
    grad = torch.ones(1, 1, 1).expand(residual.shape)
    for got, wanted in zip(passes(block, residual, grad), passes(block, residual.contiguous(), grad), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_a_frozen_parameter_and_a_frozen_input_get_no_gradient() -> None:
    block, residual = block_of(), torch.randn(2, 3, LANES)
    block.mixer.in_proj.weight.requires_grad_(False)
    block(residual).sum().backward()
    assert block.mixer.in_proj.weight.grad is None
    assert residual.grad is None
    assert all(each.grad is not None for name, each in block.named_parameters() if name != "mixer.in_proj.weight")


def test_an_incoming_gradient_is_not_changed() -> None:
    block, grad = block_of(), torch.randn(2, 3, LANES)
    given = grad.clone()
    passes(block, torch.randn(2, 3, LANES), grad)
    assert torch.equal(grad, given)


def test_a_second_derivative_is_an_error() -> None:
    block, residual = block_of(), torch.randn(1, 2, LANES, requires_grad=True)
    (grad,) = torch.autograd.grad(block(residual).square().sum(), residual, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_nan_stays_nan_in_its_window_and_after_its_token() -> None:
    residual = torch.randn(2, 4, LANES)
    residual[0, 2, 5] = float("nan")
    missing = torch.isnan(block_of()(residual)).all(dim=2)
    assert missing.tolist() == [[False, False, True, True], [False] * 4]


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"evolution": "memoryless"}, {}),
        ({"d_model": LANES // 4}, {}),
        ({}, {"dtype": torch.float64}),
        ({}, {"autocast": True}),
        ({}, {"deterministic": True}),
    ],
)
def test_what_the_loops_cannot_compute_goes_through_pytorch(fields: dict[str, Any], changed: dict[str, Any]) -> None:
    block = block_of(**fields).to(changed.get("dtype", torch.float32))
    residual = torch.randn(1, 2, len(block.norm.weight), dtype=block.norm.weight.dtype)
    try:
        torch.use_deterministic_algorithms(changed.get("deterministic", False))
        with torch.autocast("cpu", torch.bfloat16, enabled=changed.get("autocast", False)):
            assert not block.is_compiled(residual)
            assert block(residual).shape == residual.shape
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backbone", ["mamba", "transformer"])
def test_a_hook_on_any_module_runs(backbone: str) -> None:
    config = BACKBONES[backbone].config(d_model=LANES, n_layer=1)
    tokens = torch.randn(1, 2, LANES)
    names = [name for name, module in BACKBONES[backbone].build(config).named_modules() if is_called(name, module)]
    for name in names:
        network, seen = BACKBONES[backbone].build(config), list[str]()
        network.get_submodule(name).register_forward_hook(lambda *_, name=name, seen=seen: seen.append(name))
        network(tokens)
        assert seen == [name]


def is_called(name: str, module: torch.nn.Module) -> bool:
    """Not a list of modules, nor one that only holds weights."""
    return not isinstance(module, torch.nn.ModuleList) and not name.endswith(("conv1d", "dt_proj"))


def test_the_last_output_has_gradients_where_they_are_wanted() -> None:
    block = block_of()
    block.last(torch.randn(1, 3, LANES)).sum().backward()
    assert all(each.grad is not None for each in block.parameters())


def test_no_tokens_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        block_of()(torch.randn(1, 0, LANES))


def test_the_last_norm_and_its_gradients_are_those_of_pytorch() -> None:
    torch.manual_seed(0)
    network = Mamba(MambaConfig(d_model=LANES, n_layer=1))
    torch.nn.init.normal_(network.norm_f.weight)
    residual, grad = torch.randn(2, 3, LANES, requires_grad=True), torch.randn(2, 3, LANES)
    results = []
    for norm in (network.normed, network.norm_f):
        normed = norm(residual)
        results.append([normed, *torch.autograd.grad(normed, [residual, network.norm_f.weight], grad)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
