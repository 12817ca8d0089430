"""Every registered backbone fulfils the contract of `dmray.testing.backbone_contract`, installed plugins included."""

from __future__ import annotations

from typing import get_args

import pytest

from dmray.models import BACKBONES, MambaConfig, TransformerConfig
from dmray.models.configs import Evolution
from dmray.testing.backbone_contract import BackboneContract

globals().update(
    {f"Test_{name}": type(f"Test_{name}", (BackboneContract,), {"backbone": BACKBONES[name]}) for name in BACKBONES}
)

for _evolution in get_args(Evolution)[1:]:  # the first is the default
    _sizes = {**BackboneContract.sizes, "d_state": 4, "evolution": _evolution}
    _name = f"Test_mamba_{_evolution.replace('-', '_')}"
    globals()[_name] = type(_name, (BackboneContract,), {"backbone": BACKBONES["mamba"], "sizes": _sizes})


def test_a_backbone_is_found_by_its_own_name() -> None:
    assert {BACKBONES[name].name for name in BACKBONES} == set(BACKBONES)


def test_the_configs_have_the_fields_of_their_networks_and_no_others() -> None:
    start = {"activation", "timestep_init", "embedding_init", "attention_init", "residual_init"}
    transformer = {"d_model", "n_layer", "context_length", "n_head", "dropout"} | start
    assert set(TransformerConfig.model_fields) == transformer
    mamba = {"d_model", "n_layer", "context_length", "d_state", "d_conv", "expand", "evolution"}
    assert set(MambaConfig.model_fields) == mamba


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="n_head 3 does not divide d_model 16"):
        TransformerConfig(d_model=16, n_head=3)
