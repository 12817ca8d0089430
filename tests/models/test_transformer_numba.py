"""The compiled block against plain PyTorch in float64, with the masks of dropout read back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dmray.models import TransformerConfig, transformer_numba
from dmray.models.causal_transformer import CausalTransformer
from dmray.models.dropout_numba import apply_mask, new_masks
from dmray.models.transformer_numba import BlockParameters, BlockSetting, numba_block

EPSILON, CLOSE = 1e-5, 2e-5


class Size(NamedTuple):
    windows: int
    length: int
    n_head: int
    head_width: int
    activation: Literal["relu", "gelu"] = "relu"

    @property
    def width(self) -> int:
        return self.n_head * self.head_width


# LayerNorm of two or three numbers divides by deviations near 0: no computation in float32 is close to the exact one
sizes = st.builds(
    Size,
    st.integers(1, 3),
    st.integers(1, 70),
    st.integers(1, 3),
    st.integers(4, 40),
    st.sampled_from(["relu", "gelu"]),
)


def inputs_of(size: Size) -> list[Tensor]:
    """The block's input and its parameters."""
    torch.manual_seed(0)
    D = size.width
    weights = [(D,), (D,), (3 * D, D), (3 * D,), (D, D), (D,), (D,), (D,), (4 * D, D), (4 * D,), (D, 4 * D), (D,)]
    return [
        torch.randn(size.windows, size.length, D),
        *(torch.randn(shape) / shape[-1] ** (0.5 if len(shape) > 1 else 0.0) for shape in weights),
    ]


def setting_of(size: Size, *rates: float) -> BlockSetting:
    first, second, third = rates or (0.0, 0.0, 0.0)
    return BlockSetting(size.n_head, size.activation, EPSILON, (first, second, third))


class Factors(NamedTuple):
    """Masks: of the attention weights (H, B, L, L), and of both branches (B, L, D)."""

    weights: Tensor
    attention: Tensor
    mlp: Tensor


def factors_of(size: Size, setting: BlockSetting) -> Factors:
    """Those that the next block draws. Torch's RNG stays as it is."""
    with torch.random.fork_rng():
        masks = new_masks(*setting.rates)
    uniform = torch.zeros(size.n_head * size.windows, size.length, size.length)
    dropped = torch.empty_like(uniform)
    transformer_numba._attend(uniform.numpy(), np.float32(1), masks[0], dropped.numpy())
    shape = size.n_head, size.windows, size.length, size.length
    weights = torch.where(uniform > 0, dropped / uniform, 0.0).view(shape)
    rows = torch.ones(size.windows * size.length, size.width)
    branches = (apply_mask(rows, mask)[0].view(size.windows, size.length, -1) for mask in masks[1:])
    return Factors(weights, *branches)


def plain_block(x: Tensor, p: BlockParameters, size: Size, factors: Factors | None = None) -> Tensor:
    shape = (*x.shape[:2], 3, size.n_head, size.head_width)
    normed = F.layer_norm(x, (size.width,), p.ln_1, p.ln_1_bias, EPSILON)
    query, key, value = F.linear(normed, p.c_attn, p.c_attn_bias).view(shape).permute(2, 3, 0, 1, 4)
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    weights = (query @ key.mT / size.head_width**0.5).masked_fill(later, -torch.inf).softmax(-1)
    weights = weights if factors is None else weights * factors.weights
    mixed = (weights @ value).permute(1, 2, 0, 3).flatten(2)
    branch = F.linear(mixed, p.attention_proj, p.attention_proj_bias)
    middle = x + (branch if factors is None else branch * factors.attention)
    hidden = F.linear(F.layer_norm(middle, (size.width,), p.ln_2, p.ln_2_bias, EPSILON), p.c_fc, p.c_fc_bias)
    branch = F.linear({"relu": F.relu, "gelu": F.gelu}[size.activation](hidden), p.mlp_proj, p.mlp_proj_bias)
    return middle + (branch if factors is None else branch * factors.mlp)


def outputs_and_gradients(block: Callable[[Tensor, BlockParameters], Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = block(leaves[0], BlockParameters(*leaves[1:]))
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


def error(ours: list[Tensor], expected: list[Tensor]) -> float:
    """The largest error of output and gradients, relative to their norms; sums that cancel have small norms."""
    return max(float((x - y).norm() / (y.norm() + 0.1)) for x, y in zip(ours, expected, strict=True))


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_without_dropout_outputs_and_all_gradients_are_those_of_pytorch(size: Size) -> None:
    inputs = inputs_of(size)
    exact = outputs_and_gradients(lambda x, p: plain_block(x, p, size), [x.double() for x in inputs])
    assert error(outputs_and_gradients(lambda x, p: numba_block(x, p, setting_of(size)), inputs), exact) < CLOSE


def test_the_rounding_errors_are_of_the_size_of_pytorchs() -> None:
    size = Size(2, 180, 2, 32)
    inputs = inputs_of(size)
    exact = outputs_and_gradients(lambda x, p: plain_block(x, p, size), [x.double() for x in inputs])
    plain = error(outputs_and_gradients(lambda x, p: plain_block(x, p, size), inputs), exact)
    ours = error(outputs_and_gradients(lambda x, p: numba_block(x, p, setting_of(size)), inputs), exact)
    assert ours < 2 * plain


@given(sizes, st.tuples(*[st.sampled_from([0.0, 0.1, 0.5])] * 3))
@settings(max_examples=20, deadline=None)
def test_with_dropout_both_passes_are_those_of_pytorch_with_the_same_masks(
    size: Size, rates: tuple[float, float, float]
) -> None:
    inputs, setting = inputs_of(size), setting_of(size, *rates)
    factors = factors_of(size, setting)
    ours = outputs_and_gradients(lambda x, p: numba_block(x, p, setting), inputs)
    exact = outputs_and_gradients(lambda x, p: plain_block(x, p, size, factors), [x.double() for x in inputs])
    assert error(ours, exact) < CLOSE


def test_attention_weights_are_dropped_at_their_rate_independently_in_windows_heads_and_rows() -> None:
    size = Size(4, 100, 3, 2)
    torch.manual_seed(0)
    weights = factors_of(size, setting_of(size, 0.2, 0.2, 0.2)).weights.flatten(0, 1)
    past = torch.ones(100, 100, dtype=torch.bool).tril()
    kept = (weights > 0).double()
    assert float(kept[:, past].mean()) == pytest.approx(0.8, abs=0.01)
    assert float(weights[:, past].mean()) == pytest.approx(1.0, abs=0.01)
    assert not weights[:, ~past].any()
    between_matrices = torch.corrcoef(kept[:, past]).fill_diagonal_(0.0)
    assert float(between_matrices.abs().max()) < 4.5 / int(past.sum()) ** 0.5
    rows = torch.corrcoef(torch.stack([kept[:, 60:-1, :60].flatten(), kept[:, 61:, :60].flatten()]))[0, 1]
    assert abs(float(rows)) < 4.5 / kept[:, 61:, :60].numel() ** 0.5


def test_layers_and_steps_drop_different_elements() -> None:
    torch.manual_seed(0)
    model, tokens = CausalTransformer(TransformerConfig(d_model=64, n_layer=2, dropout=0.5)), torch.zeros(1, 20, 64)
    with torch.no_grad():
        for layer in model.layers:  # a block's output of zeros is then its dropped biases
            layer.mlp.c_proj.bias.fill_(1.0)
    outputs = [layer(tokens).detach() for _ in range(2) for layer in model.layers]
    assert len({y.numpy().tobytes() for y in outputs}) == 4
    assert set(torch.cat(outputs).unique().tolist()) == {0.0, 2.0}


def test_a_block_may_be_used_twice_in_a_graph() -> None:
    size = Size(2, 5, 2, 4)
    inputs, setting = inputs_of(size), setting_of(size)
    twice = outputs_and_gradients(lambda x, p: numba_block(numba_block(x, p, setting), p, setting), inputs)
    exact = outputs_and_gradients(
        lambda x, p: plain_block(plain_block(x, p, size), p, size), [x.double() for x in inputs]
    )
    assert error(twice, exact) < CLOSE


@pytest.mark.parametrize("trained", [(), (0,), (1, 4), (2,), tuple(range(1, 13)), tuple(range(13))])
def test_only_inputs_that_need_a_gradient_get_one(trained: tuple[int, ...]) -> None:
    size = Size(2, 5, 2, 4)
    inputs, setting = inputs_of(size), setting_of(size)
    expected = outputs_and_gradients(lambda x, p: numba_block(x, p, setting), inputs)[1:]
    leaves = [x.detach().requires_grad_(place in trained) for place, x in enumerate(inputs)]
    y = numba_block(leaves[0], BlockParameters(*leaves[1:]), setting)
    if not trained:
        assert not y.requires_grad
        return
    (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum().backward()
    for place, (leaf, grad) in enumerate(zip(leaves, expected, strict=True)):
        assert (leaf.grad is not None) == (place in trained)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, grad)


def test_a_second_backward_pass_and_second_derivatives_are_errors() -> None:
    size = Size(1, 3, 1, 4)
    x, *parameters = (x.requires_grad_() for x in inputs_of(size))
    y = numba_block(x, BlockParameters(*parameters), setting_of(size)).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()
    y = numba_block(x, BlockParameters(*parameters), setting_of(size)).square().sum()
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_nan_in_a_token_gives_nan_in_later_ones_and_in_no_other_window(
    activation: Literal["relu", "gelu"],
) -> None:
    size = Size(2, 4, 1, 8, activation)
    x, *parameters = inputs_of(size)
    x[0, 1] = torch.nan
    y = numba_block(x, BlockParameters(*parameters), setting_of(size))
    assert y[0, 1:].isnan().all()
    assert not y[1].isnan().any()


def test_inputs_and_parameters_need_not_be_contiguous() -> None:
    size = Size(2, 5, 2, 4)
    inputs, setting = inputs_of(size), setting_of(size, 0.0, 0.0, 0.0)
    expected = numba_block(inputs[0], BlockParameters(*inputs[1:]), setting)
    x, *parameters = (torch.stack([x, x], dim=-1)[..., 0] for x in inputs)
    torch.testing.assert_close(numba_block(x, BlockParameters(*parameters), setting), expected)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def run(model: nn.Module, tokens: Tensor) -> Tensor:
    y: Tensor = model(tokens)
    return y


def under_functional_call(model: nn.Module, tokens: Tensor) -> Tensor:
    y: Tensor = torch.func.functional_call(model, dict(model.named_parameters()), (tokens,))
    return y


def under_vmap(model: nn.Module, tokens: Tensor) -> Tensor:
    stacked = {name: torch.stack([x, x]) for name, x in model.named_parameters()}
    call = torch.func.vmap(lambda parameters: torch.func.functional_call(model, parameters, (tokens,)))
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch warns that others are slow there
        y: Tensor = call(stacked)
    return y


def under_compile(model: nn.Module, tokens: Tensor) -> Tensor:
    y: Tensor = torch.compile(model, fullgraph=True, backend="eager")(tokens)
    return y


def under_grad(model: nn.Module, tokens: Tensor) -> Tensor:
    y: Tensor = torch.func.grad(lambda x: model(x).sum())(tokens)
    return y


@pytest.mark.parametrize(
    ("case", "call", "context", "options", "length", "compiled"),
    [
        ("training", run, nullcontext, {"dropout": 0.1}, 5, True),
        ("other parameters", under_functional_call, nullcontext, {"dropout": 0.1}, 5, True),
        ("no tokens", run, nullcontext, {"dropout": 0.1}, 0, False),
        ("no dropout", run, nullcontext, {"dropout": 0.0}, 256, True),
        ("no dropout, long", run, nullcontext, {"dropout": 0.0}, 257, False),
        ("dropout, long", run, nullcontext, {"dropout": 0.1}, 257, True),
        ("without gradients", run, torch.no_grad, {"dropout": 0.1}, 5, False),
        ("deterministic", run, deterministic, {"dropout": 0.1}, 5, False),
        ("bfloat16", run, lambda: torch.autocast("cpu", dtype=torch.bfloat16), {"dropout": 0.1}, 5, False),
        ("a pack", under_vmap, nullcontext, {"dropout": 0.0}, 5, False),
        ("torch.compile", under_compile, nullcontext, {"dropout": 0.1}, 5, False),
        ("torch.func.grad", under_grad, nullcontext, {"dropout": 0.0}, 5, False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_compiled_block_is_used_in_training_in_float32_only(
    case: str,
    call: Callable[[nn.Module, Tensor], Tensor],
    context: Callable[[], Any],
    options: dict[str, float],
    length: int,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, calls = CausalTransformer(TransformerConfig.model_validate({"d_model": 8, "n_layer": 2, **options})), []

    def recorded(*given: Any) -> Tensor:
        calls.append(given)
        return numba_block(*given)

    monkeypatch.setattr(transformer_numba, "numba_block", recorded)
    with context():
        call(model, torch.randn(1, length, 8))
    assert len(calls) == (2 if compiled else 0), case


def test_float64_is_plain_pytorch() -> None:
    model = CausalTransformer(TransformerConfig(d_model=8, n_layer=1, dropout=0.1)).double()
    assert model(torch.randn(1, 3, 8, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_network_computes_the_same_with_and_without_the_compiled_blocks(
    activation: Literal["relu", "gelu"],
) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(d_model=24, n_layer=2, n_head=3, activation=activation, dropout=0.0)
    model, tokens = CausalTransformer(config), torch.randn(2, 7, 24)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        plain = model(tokens)
    torch.testing.assert_close(model(tokens), plain, rtol=1e-5, atol=1e-5)
