from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dmray.models import CausalTransformer, Mamba
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
        state.restart()
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
    A, hidden = -torch.rand(7, 16, generator=draw) * 16, torch.randn(3, 7, 16, generator=draw)
    ours, reference = hidden.clone(), hidden.double()
    y = selective_steps(u, delta, A, B, C, ours)
    expected = torch_steps(*(x.double() for x in (u, delta, A, B, C)), reference)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-6)


def test_not_a_number_stays_one() -> None:
    hidden = torch.zeros(1, 1, 4)
    u, delta = torch.full((1, 1, 1), float("nan")), torch.ones(1, 1, 1)
    assert selective_steps(u, delta, -torch.ones(1, 4), torch.ones(1, 1, 4), torch.ones(1, 1, 4), hidden).isnan().all()
