from __future__ import annotations

import pytest
import torch

from dmray.models.causal_transformer import CausalTransformer
from dmray.models.configs import TransformerConfig
from dmray.models.dropout import Dropout, has_given_masks


def test_it_is_torchs_until_it_is_given_a_mask() -> None:
    x, ours, theirs = torch.randn(4, 5), Dropout(0.4), torch.nn.Dropout(0.4)
    torch.manual_seed(3)
    drawn = ours(x)
    torch.manual_seed(3)
    assert torch.equal(drawn, theirs(x))
    assert torch.equal(ours.eval()(x), x)
    assert ours.rate == 0.0
    assert (ours.train().rate, ours.draws) == (0.4, True)


def test_a_given_mask_decides_in_training_mode_only_and_is_not_saved() -> None:
    x, dropout = torch.tensor([1.0, torch.nan, 3.0]), Dropout(0.5)
    dropout.kept = torch.tensor([True, False, True])
    assert dropout(x).tolist() == [2.0, 0.0, 6.0]
    assert not dropout.draws
    assert torch.equal(dropout.eval()(x).isnan(), x.isnan())
    assert not dropout.state_dict()
    assert has_given_masks(torch.nn.Sequential(torch.nn.ReLU(), dropout))
    assert not has_given_masks(torch.nn.Sequential(Dropout(0.5), torch.nn.Dropout(0.5)))


@pytest.mark.parametrize("place", ["dropout", "layers.0.attention.weight_dropout", "layers.1.mlp.residual_dropout"])
def test_the_transformer_uses_each_mask_that_is_given(place: str) -> None:
    """With gradients, where blocks are compiled: they step aside for a mask."""
    torch.manual_seed(0)
    network, tokens = CausalTransformer(TransformerConfig(d_model=16, n_layer=2, dropout=0.0)), torch.randn(2, 5, 16)
    dropout, expected = network.get_submodule(place), network(tokens)
    assert isinstance(dropout, Dropout)
    dropout.kept = torch.ones((), dtype=torch.bool)
    torch.testing.assert_close(network(tokens), expected, rtol=1e-5, atol=1e-6)
    dropout.kept = torch.zeros((), dtype=torch.bool)
    assert not torch.allclose(network(tokens), expected, atol=1e-3)
