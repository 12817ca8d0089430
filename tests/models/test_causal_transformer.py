from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmray.models import TransformerConfig
from dmray.models.causal_transformer import CausalTransformer

TINY = TransformerConfig(d_model=8, n_layer=2, n_head=2)


@given(st.integers(1, 12), st.data())
@settings(max_examples=20, deadline=None)
def test_an_output_depends_on_all_earlier_tokens_and_on_no_later_one(length: int, data: st.DataObject) -> None:
    torch.manual_seed(0)
    model = CausalTransformer(TINY).eval()
    tokens = torch.randn(2, length, 8)
    place = data.draw(st.integers(0, length - 1))
    changed = tokens.clone()
    changed[:, place] *= -1.0
    difference = (model(tokens) - model(changed)).detach().abs().amax((0, 2))
    assert float(difference[:place].sum()) < 1e-6
    assert float(difference[place:].min()) > 1e-6


def test_without_positions_the_last_output_does_not_depend_on_the_order_of_the_others() -> None:
    torch.manual_seed(0)
    model = CausalTransformer(TransformerConfig(d_model=8, n_layer=1)).eval()  # one block: later ones see causal sums
    tokens = torch.randn(1, 4, 8)
    shuffled = tokens[:, [2, 0, 1, 3]]
    torch.testing.assert_close(model(tokens)[:, -1], model(shuffled)[:, -1], rtol=0, atol=1e-6)
    assert float((model(tokens)[:, 1] - model(shuffled)[:, 1]).detach().abs().max()) > 1e-3


def test_weights_are_initialised_as_gpt2s_with_smaller_residual_projections() -> None:
    torch.manual_seed(0)
    model = CausalTransformer(TransformerConfig(d_model=128, n_layer=3))
    parameters = dict(model.named_parameters())
    assert sum(name.endswith("c_proj.weight") for name in parameters) == 2 * 3
    assert sum(name.endswith(("c_attn.weight", "c_fc.weight")) for name in parameters) == 2 * 3
    for name, parameter in parameters.items():
        if name.endswith("c_proj.weight"):
            assert float(parameter.detach().std()) == pytest.approx(0.02 / math.sqrt(6), rel=0.03)
        elif name.endswith(("c_attn.weight", "c_fc.weight")):
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.03)
        elif name.endswith("bias"):
            assert float(parameter.detach().abs().max()) == 0.0


def test_every_way_to_run_the_network_takes_the_activation() -> None:
    outputs = {}
    for activation in ("relu", "gelu"):
        torch.manual_seed(0)
        config = TransformerConfig.model_validate({"d_model": 8, "n_layer": 2, "activation": activation})
        model, tokens = CausalTransformer(config).eval(), torch.randn(2, 5, 8)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
            whole, state = model(tokens), model.begin(2)
            pieces = torch.cat([model.advance(piece, state) for piece in tokens.split(2, dim=1)], dim=1)
            torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)
            torch.testing.assert_close(model.last(tokens), whole[:, -1], rtol=0, atol=1e-5)
        outputs[activation] = whole
    assert float((outputs["relu"] - outputs["gelu"]).abs().max()) > 0.01


def test_dropout_follows_torchs_seed_in_training_and_is_off_in_evaluation() -> None:
    model, tokens = CausalTransformer(TransformerConfig(d_model=8, n_layer=1, dropout=0.5)), torch.randn(2, 5, 8)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model.train()(tokens))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.equal(model.eval()(tokens), model(tokens))


@pytest.mark.parametrize(
    "part", ["dropout", "attention.weight_dropout", "attention.residual_dropout", "mlp.residual_dropout"]
)
def test_dropout_applies_to_embeddings_attention_and_both_residual_branches(part: str) -> None:
    torch.manual_seed(0)
    model, tokens = CausalTransformer(TransformerConfig(d_model=8, n_layer=1, dropout=0.5)).eval(), torch.randn(2, 5, 8)
    settled = model(tokens)
    owner = model if part == "dropout" else model.layers[0]
    owner.get_submodule(part).training = True
    assert not torch.equal(model(tokens), settled)
