from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dmray.models import CausalTransformer, Mamba
from dmray.models.scan_reference import reference_scan
from dmray.models.selective_steps import selective_steps, torch_steps
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


def test_the_compiled_steps_are_pytorchs() -> None:
    draw = torch.Generator().manual_seed(0)
    u, B, C = (torch.randn(3, 5, size, generator=draw) for size in (7, 16, 16))
    delta = torch.rand(3, 5, 7, generator=draw) * 3
    A, hidden = -torch.rand(7, 16, generator=draw) * 16, torch.randn(3, 16, 7, generator=draw)
    ours, reference = hidden.clone(), hidden.double()
    y = selective_steps(u, delta, A, B, C, ours)
    expected = torch_steps(*(x.double() for x in (u, delta, A, B, C)), reference)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-6)


def test_not_a_number_stays_one() -> None:
    hidden = torch.zeros(1, 4, 1)
    u, delta = torch.full((1, 1, 1), float("nan")), torch.ones(1, 1, 1)
    assert selective_steps(u, delta, -torch.ones(1, 4), torch.ones(1, 1, 4), torch.ones(1, 1, 4), hidden).isnan().all()


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


def test_a_state_of_another_shape_is_refused_before_compiled_code_writes_to_it() -> None:
    u, rates, B = torch.ones(2, 1, 3), -torch.ones(3, 4), torch.ones(2, 1, 4)
    with pytest.raises(AssertionError, match="another shape"):
        selective_steps(u, u, rates, B, B, torch.zeros(2, 3, 4))
    with pytest.raises(AssertionError, match="in place"):
        selective_steps(u, u, rates, B, B, torch.zeros(2, 3, 4).transpose(1, 2))


@every_backbone
@given(st.integers(1, 5), st.integers(0, 2), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_a_group_that_restarts_sees_nothing_of_before_and_the_others_all(
    build: type[nn.Module], before: int, after: int, more: int
) -> None:
    made, cut = network(build).double(), before + after + more
    tokens = random_tokens(6, cut + 2).double()  # three groups of two
    state = made.begin(2, 3)  # type: ignore[operator]
    with torch.no_grad():
        made.advance(tokens[:, :before], state)  # type: ignore[operator]
        state.restart(1, after)
        parts = [made.advance(part, state) for part in (tokens[:, before:cut], tokens[:, cut:])]  # type: ignore[operator]
        whole, begun = made(tokens), made(tokens[2:4, before + after :])
    ours, others = torch.cat(parts, dim=1), [0, 1, 4, 5]
    torch.testing.assert_close(ours[others], whole[others, before:], rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[2:4, after:], begun, rtol=0, atol=1e-12)


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
def test_any_number_of_taps_is_remembered(d_conv: int) -> None:
    torch.manual_seed(0)
    made, tokens = Mamba(ModelSpec(d_model=16, n_layer=1, d_conv=d_conv)).double().eval(), random_tokens(2, 9).double()
    with torch.no_grad():
        expected = made(tokens)
    torch.testing.assert_close(in_pieces(made, tokens, [1, 1, 2, 5]), expected, rtol=0, atol=1e-12)
