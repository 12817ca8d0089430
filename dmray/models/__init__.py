"""Causal backbones over embedded tokens: (B, L, d_model) -> (B, L, d_model); output i depends on inputs 0..i only.

Importing this package does not import torch. The module of a network is imported when the network is built.
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
