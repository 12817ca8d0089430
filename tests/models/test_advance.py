from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dmray.models import CausalTransformer, Mamba
from dmray.models.scan_reference import reference_scan
from dmray.models.selective_steps import selective_steps
from dmray.specs import ModelSpec

SPEC = ModelSpec(d_model=16, n_layer=2, n_head=2, d_state=4, dropout=0.0)
BACKBONES = [Mamba, CausalTransformer]
every_backbone = pytest.mark.parametrize("build", BACKBONES)


def network(build: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    made = build(SPEC)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return made.eval()


def random_tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, length, SPEC.d_model, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def in_pieces(made: nn.Module, tokens: Tensor, sizes: list[int]) -> Tensor:
    state = made.begin(len(tokens))  # type: ignore[operator]
    return torch.cat([made.advance(piece, state) for piece in tokens.split(sizes, dim=1)], dim=1)  # type: ignore[operator]


@every_backbone
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6))
@settings(max_examples=15)
def test_token_by_token_is_the_forward_pass_however_it_is_cut(build: type[nn.Module], sizes: list[int]) -> None:
    made, tokens = network(build), random_tokens(3, sum(sizes))
    with torch.no_grad():
        expected = made(tokens)
    torch.testing.assert_close(in_pieces(made, tokens, sizes), expected, rtol=0, atol=2e-5)


@every_backbone
def test_in_double_precision_it_is_exact_to_rounding(build: type[nn.Module]) -> None:
    made, tokens = network(build).double(), random_tokens(2, 9).double()
    with torch.no_grad():
        expected = made(tokens)
    torch.testing.assert_close(in_pieces(made, tokens, [3, 1, 5]), expected, rtol=0, atol=1e-12)


@every_backbone
def test_a_state_that_restarts_is_a_new_one_and_rows_that_stay_are_themselves(build: type[nn.Module]) -> None:
    made, tokens = network(build), random_tokens(4, 6)
    state = made.begin(4)  # type: ignore[operator]
    with torch.no_grad():
        made.advance(random_tokens(4, 3, seed=1), state)  # type: ignore[operator]
        state.restart(0)
        first = made.advance(tokens[:, :2], state)  # type: ignore[operator]
        kept = torch.tensor([3, 1])
        state.keep(kept)
        rest = made.advance(tokens[kept, 2:], state)  # type: ignore[operator]
    expected = in_pieces(made, tokens, [2, 4])
    torch.testing.assert_close(first, expected[:, :2], rtol=0, atol=1e-6)
    torch.testing.assert_close(rest, expected[kept, 2:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("d_model", [8, 40, 64])  # inner widths below, between and of whole vectors
@pytest.mark.parametrize("rows", [1, 3])
def test_the_compiled_steps_are_pytorchs_in_double_precision(d_model: int, rows: int) -> None:
    torch.manual_seed(0)
    made = Mamba(ModelSpec(d_model=d_model, n_layer=2)).eval()
    tokens = torch.randn(rows, 7, d_model)
    compiled, plain = made.begin(rows), made.double().begin(rows)
    assert compiled.compiled is not None
    assert plain.compiled is None
    made.float()
    for piece in tokens.split([2, 1, 4], dim=1):
        with torch.no_grad():
            ours = made.advance(piece, compiled)
            expected = made.double().advance(piece.double(), plain)
        made.float()
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=2e-6)
    for layer, other in zip(compiled.layers, plain.layers, strict=True):
        inner = other.hidden.shape[-1]
        torch.testing.assert_close(layer.hidden[..., :inner].double(), other.hidden, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(layer.taps[..., :inner].double(), other.taps, rtol=1e-5, atol=2e-6)


def test_not_a_number_stays_one_in_its_row() -> None:
    made, tokens = network(Mamba), random_tokens(3, 4)
    tokens[1, 1, 0] = float("nan")
    ours = in_pieces(made, tokens, [1, 1, 2])
    assert ours[1, 1:].isnan().all()
    assert ours[1, 0].isfinite().all()
    assert ours[[0, 2]].isfinite().all()


def test_a_deterministic_run_takes_pytorchs_steps() -> None:
    made = network(Mamba)
    torch.use_deterministic_algorithms(True)
    try:
        assert made.begin(2).compiled is None  # type: ignore[operator]
    finally:
        torch.use_deterministic_algorithms(False)


def test_tokens_given_are_left_as_they_are_and_outputs_too() -> None:
    made, tokens = network(Mamba), random_tokens(2, 2)
    state, given = made.begin(2), tokens.clone()  # type: ignore[operator]
    with torch.no_grad():
        first = made.advance(tokens, state)  # type: ignore[operator]
        kept = first.clone()
        made.advance(tokens, state)  # type: ignore[operator]
    torch.testing.assert_close(tokens, given, rtol=0, atol=0)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


@pytest.mark.parametrize(("rows", "tokens", "channels", "size"), [(1, 1, 1, 1), (2, 3, 33, 4), (3, 2, 64, 16)])
def test_steps_go_on_where_the_scan_stopped(rows: int, tokens: int, channels: int, size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    u, z, delta = (torch.randn(rows, tokens + 2, channels, generator=draw) for _ in range(3))
    B, C = (torch.randn(rows, tokens + 2, size, generator=draw) for _ in range(2))
    A, delta = -torch.rand(channels, size, generator=draw) * 16, delta.exp()
    nothing, opened = torch.zeros(channels), torch.full_like(z, 40.0)  # a gate of 40 multiplies by 40
    expected = reference_scan(u, delta, A, B, C, nothing, opened, nothing, False) / 40.0
    hidden = torch.zeros(rows, size, channels)
    parts = [
        selective_steps(u[:, cut], delta[:, cut], A, B[:, cut], C[:, cut], hidden)
        for cut in (slice(0, 2), slice(2, None))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_a_state_of_another_number_of_rows_is_refused_before_compiled_code_writes_to_it() -> None:
    made = network(Mamba)
    with pytest.raises(AssertionError, match="another number of rows"):
        made.advance(random_tokens(3, 1), made.begin(2))  # type: ignore[operator]


@every_backbone
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@given(st.integers(1, 5), st.integers(0, 2), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_a_group_that_restarts_sees_nothing_of_before_and_the_others_all(
    build: type[nn.Module], dtype: torch.dtype, atol: float, before: int, after: int, more: int
) -> None:
    made, cut = network(build).to(dtype), before + after + more
    tokens = random_tokens(6, cut + 2).to(dtype)  # three groups of two
    state = made.begin(2, 3)  # type: ignore[operator]
    with torch.no_grad():
        made.advance(tokens[:, :before], state)  # type: ignore[operator]
        state.restart(1, after)
        parts = [made.advance(part, state) for part in (tokens[:, before:cut], tokens[:, cut:])]  # type: ignore[operator]
        whole, begun = made(tokens), made(tokens[2:4, before + after :])
    ours, others = torch.cat(parts, dim=1), [0, 1, 4, 5]
    torch.testing.assert_close(ours[others], whole[others, before:], rtol=0, atol=atol)
    torch.testing.assert_close(ours[2:4, after:], begun, rtol=0, atol=atol)


@every_backbone
def test_rows_are_kept_in_every_group(build: type[nn.Module]) -> None:
    made, tokens = network(build).double(), random_tokens(6, 7).double()
    state, kept = made.begin(3, 2), torch.tensor([2, 0])  # type: ignore[operator]
    with torch.no_grad():
        made.advance(tokens[:, :4], state)  # type: ignore[operator]
        state.keep(kept)
        state.restart(1)
        ours = made.advance(tokens[[2, 0, 5, 3], 4:], state)  # type: ignore[operator]
        expected = torch.cat([made(tokens)[kept, 4:], made(tokens[[5, 3], 4:])])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("d_conv", [1, 2, 5])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_any_number_of_taps_is_remembered(d_conv: int, dtype: torch.dtype, atol: float) -> None:
    torch.manual_seed(0)
    made = Mamba(ModelSpec(d_model=16, n_layer=1, d_conv=d_conv)).to(dtype).eval()
    tokens = random_tokens(2, 9).to(dtype)
    with torch.no_grad():
        expected = made(tokens)
    torch.testing.assert_close(in_pieces(made, tokens, [1, 1, 2, 5]), expected, rtol=0, atol=atol)


@every_backbone
@pytest.mark.parametrize("length", [1, 7])
def test_the_last_output_alone_is_the_forward_passs_last(build: type[nn.Module], length: int) -> None:
    made, tokens = network(build).double(), random_tokens(3, length).double()
    with torch.no_grad():
        torch.testing.assert_close(made.last(tokens), made(tokens)[:, -1], rtol=0, atol=1e-12)  # type: ignore[operator]
