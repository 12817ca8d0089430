"""Causal backbones over embedded tokens: `(B, L, d_model) -> (B, L, d_model)`, output i sees inputs 0..i only."""

from dmray.models.backbone import Backbone, BackboneState
from dmray.models.causal_transformer import CausalTransformer
from dmray.models.mamba import Mamba, MambaMixer
from dmray.models.selective_scan import SCAN_BACKENDS, scan_backend, selective_scan

__all__ = [
    "SCAN_BACKENDS",
    "Backbone",
    "BackboneState",
    "CausalTransformer",
    "Mamba",
    "MambaMixer",
    "scan_backend",
    "selective_scan",
]
