"""Causal backbones over embedded tokens: `(B, L, d_model) -> (B, L, d_model)`, output i sees inputs 0..i only.

Light to import: `configs` and `backbones` need no torch, the networks load when they are built.
"""

from dmray.models.backbones import BACKBONES, Backbone
from dmray.models.configs import BackboneConfig, LSTMConfig, MambaConfig, MLPConfig, TransformerConfig
from dmray.models.network import BackboneNetwork, BackboneState

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneConfig",
    "BackboneNetwork",
    "BackboneState",
    "LSTMConfig",
    "MLPConfig",
    "MambaConfig",
    "TransformerConfig",
]
