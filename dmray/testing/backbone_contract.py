"""The tests that the network of every backbone must pass. Subclass the suite in a test file and set the backbone.

class TestMyBackbone(BackboneContract):
    backbone = MY_BACKBONE
"""

from __future__ import annotations

import io
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dmray.models import Backbone, BackboneConfig, BackboneNetwork

WIDTH = 16
EXACT = 1e-12  # tolerance for double precision
SINGLE = 2e-5  # tolerance for single precision
_every_class = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow]
)


class BackboneContract:
    """`sizes`: fields of the config. `d_model` must stay 16, the width of the tokens that the tests use."""

    backbone: ClassVar[Backbone]
    sizes: ClassVar[dict[str, Any]] = {"d_model": WIDTH, "n_layer": 2}

    def config(self, **changes: Any) -> BackboneConfig:
        return self.backbone.config.model_validate(self.sizes | changes)

    def network(self) -> Any:
        """A network in evaluation mode with weights far from the initial ones, so that outputs depend on all inputs."""
        torch.manual_seed(0)
        made = self.backbone.build(self.config())
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
        return made.eval()

    @torch.no_grad()
    def in_pieces(self, network: BackboneNetwork, tokens: Tensor, sizes: list[int]) -> Tensor:
        """The outputs of repeated `advance` over pieces of `sizes` tokens."""
        state = network.begin(len(tokens))
        pieces = torch.split(tokens, sizes, dim=1)
        return torch.cat([network.advance(piece, state) for piece in pieces], dim=1)

    def test_an_output_depends_on_no_later_token(self) -> None:
        network, tokens = self.network().double(), random_tokens(2, 6).double()
        changed = tokens.clone()
        changed[:, 4:] += 1.0
        with torch.no_grad():
            difference = (network(changed) - network(tokens)).abs().amax(dim=(0, 2))
        assert float(difference[:4].max()) <= EXACT
        assert float(difference[4]) > 0.0

    @given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6))
    @_every_class
    def test_token_by_token_equals_the_forward_pass(self, sizes: list[int]) -> None:
        network, tokens = self.network(), random_tokens(3, sum(sizes))
        with torch.no_grad():
            expected = network(tokens)
        torch.testing.assert_close(self.in_pieces(network, tokens, sizes), expected, rtol=0, atol=SINGLE)

    def test_in_double_precision_token_by_token_is_exact_to_rounding(self) -> None:
        network, tokens = self.network().double(), random_tokens(2, 9).double()
        with torch.no_grad():
            expected = network(tokens)
        torch.testing.assert_close(self.in_pieces(network, tokens, [3, 1, 5]), expected, rtol=0, atol=EXACT)

    @pytest.mark.parametrize("length", [1, 7])
    def test_the_last_output_is_that_of_the_forward_pass(self, length: int) -> None:
        network, tokens = self.network().double(), random_tokens(3, length).double()
        with torch.no_grad():
            torch.testing.assert_close(network.last(tokens), network(tokens)[:, -1], rtol=0, atol=EXACT)

    @pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, EXACT), (torch.float32, SINGLE)])
    @given(st.integers(1, 5), st.integers(0, 2), st.integers(1, 3))
    @_every_class
    def test_restarting_a_group_clears_its_state_and_no_other(
        self, dtype: torch.dtype, atol: float, before: int, after: int, more: int
    ) -> None:
        network, cut = self.network().to(dtype), before + after + more
        tokens = random_tokens(6, cut + 2).to(dtype)  # three groups of two rows
        state = network.begin(2, 3)
        with torch.no_grad():
            network.advance(tokens[:, :before], state)
            state.restart(1, after)
            parts = [network.advance(part, state) for part in (tokens[:, before:cut], tokens[:, cut:])]
            whole, begun = network(tokens), network(tokens[2:4, before + after :])
        ours, others = torch.cat(parts, dim=1), [0, 1, 4, 5]
        torch.testing.assert_close(ours[others], whole[others, before:], rtol=0, atol=atol)
        torch.testing.assert_close(ours[2:4, after:], begun, rtol=0, atol=atol)

    def test_rows_are_kept_in_every_group(self) -> None:
        network, tokens = self.network().double(), random_tokens(6, 7).double()
        state, kept = network.begin(3, 2), torch.tensor([2, 0])
        with torch.no_grad():
            network.advance(tokens[:, :4], state)
            state.keep(kept)
            state.restart(1)
            ours = network.advance(tokens[[2, 0, 5, 3], 4:], state)
            expected = torch.cat([network(tokens)[kept, 4:], network(tokens[[5, 3], 4:])])
        torch.testing.assert_close(ours, expected, rtol=0, atol=EXACT)

    def test_a_restarted_state_equals_a_new_one_and_kept_rows_keep_their_state(self) -> None:
        network, tokens = self.network(), random_tokens(4, 6)
        state = network.begin(4)
        with torch.no_grad():
            network.advance(random_tokens(4, 3, seed=1), state)
            state.restart(0)
            first = network.advance(tokens[:, :2], state)
            kept = torch.tensor([3, 1])
            state.keep(kept)
            rest = network.advance(tokens[kept, 2:], state)
        expected = self.in_pieces(network, tokens, [2, 4])
        torch.testing.assert_close(first, expected[:, :2], rtol=0, atol=1e-6)
        torch.testing.assert_close(rest, expected[kept, 2:], rtol=0, atol=1e-6)

    def test_advance_changes_neither_its_tokens_nor_earlier_outputs(self) -> None:
        network, tokens = self.network(), random_tokens(2, 2)
        state, given_tokens = network.begin(2), tokens.clone()
        with torch.no_grad():
            first = network.advance(tokens, state)
            copy = first.clone()
            network.advance(tokens, state)
        torch.testing.assert_close(tokens, given_tokens, rtol=0, atol=0)
        torch.testing.assert_close(first, copy, rtol=0, atol=0)

    def test_every_parameter_gets_a_finite_gradient(self) -> None:
        network: nn.Module = self.network()
        network(random_tokens(3, 5)).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            assert float(parameter.grad.abs().max()) > 0.0, name

    def test_gradients_are_those_of_finite_differences(self) -> None:
        network, tokens = self.network().double(), random_tokens(1, 3).double()[..., :].requires_grad_()
        direction = random_tokens(1, 3, seed=2).double()
        (gradient,) = torch.autograd.grad(network(tokens).sin().sum(), tokens)
        step = 1e-6
        with torch.no_grad():
            ends = [network(tokens + sign * step * direction).sin().sum() for sign in (1, -1)]
        slope = float(ends[0] - ends[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-6)

    def test_a_checkpoint_restores_the_network_exactly(self) -> None:
        network, tokens, file = self.network(), random_tokens(2, 5), io.BytesIO()
        torch.save(network.state_dict(), file)
        file.seek(0)
        other = self.backbone.build(self.config()).eval()
        other.load_state_dict(torch.load(file, weights_only=True))
        with torch.no_grad():
            torch.testing.assert_close(other(tokens), network(tokens), rtol=0, atol=0)

    def test_the_config_says_how_many_parameters_the_network_has(self) -> None:
        for changes in ({}, {"d_model": 2 * WIDTH}, {"n_layer": 3}):
            config = self.config(**changes)
            built = self.backbone.build(config)
            assert self.backbone.num_parameters(config) == sum(each.numel() for each in built.parameters())

    def test_flops_grow_with_tokens_and_cover_the_matrix_products(self) -> None:
        few, many = (self.backbone.flops(self.config(), tokens) for tokens in (5, 50))
        assert many >= 10 * few > 0
        assert few >= self.backbone.num_parameters(self.config())


def random_tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    """(rows, length, 16) float32 from the normal distribution."""
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(seed))
