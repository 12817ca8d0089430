"""The network of a stage of any method: embed the tokens of all timesteps, run a causal backbone, apply a linear head.

Shapes: B windows, T timesteps, K tokens per timestep, W width (d_model).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from dmray.fields import Field, Token
from dmray.methods import Layout, PolicyShape
from dmray.models import Backbone, BackboneConfig, BackboneNetwork
from dmray.models.backbones import TokenInit


class SequenceModel(nn.Module):
    """The network of one stage. Inputs and predictions are encoded values."""

    def __init__(self, layout: Layout, backbone: Backbone, config: BackboneConfig, shape: PolicyShape) -> None:
        super().__init__()
        self.layout = layout
        fields = dict.fromkeys(token.field for token in layout.tokens)
        self.embeddings = nn.ModuleDict({field: nn.Linear(shape.dim(field), config.d_model) for field in fields})
        self.timesteps = nn.Embedding(shape.max_timesteps, config.d_model) if backbone.timestep_embedding else None
        self.norm = nn.LayerNorm(config.d_model)
        self.backbone = backbone.build(config)
        self.head = nn.Linear(config.d_model, shape.dim(layout.target))
        self.output_scale = shape.action_limit if layout.target is Field.ACTION else 1.0
        self._initialise(backbone.token_init(config))

    def forward(self, values: Mapping[Token, Tensor], timesteps: Tensor) -> Tensor:
        """The predictions (B, T, target dim). `values`: (B, T, dim) per token; `timesteps`: (B, T)."""
        embedded = self.embed(values, timesteps)
        hidden: Tensor = self.backbone(embedded.flatten(1, 2))
        return self.read(hidden.view_as(embedded)[:, :, self.layout.read_at])

    def embed(self, values: Mapping[Token, Tensor], timesteps: Tensor) -> Tensor:
        """The backbone's input, (B, T, K, W). The part of a timestep depends on the values of that timestep only."""
        tokens = torch.stack([self.embeddings[token.field](values[token]) for token in self.layout.tokens], dim=2)
        if self.timesteps is not None:
            tokens = tokens + self.timesteps(timesteps)[:, :, None]
        # The residual path starts here, in the dtype of the parameters; autocast may have changed that of the tokens.
        normed: Tensor = self.norm(tokens.to(self.norm.weight.dtype))
        return normed

    def _initialise(self, start: TokenInit) -> None:
        """Give embeddings, timestep table and head their initial weights, where PyTorch's are not those."""
        for linear in (*(cast(nn.Linear, each) for each in self.embeddings.values()), self.head):
            if start.linear_std is not None:
                nn.init.normal_(linear.weight, std=start.linear_std)
            if start.zero_biases:
                nn.init.zeros_(linear.bias)
        if self.timesteps is not None and start.timestep_std != 1.0:
            nn.init.normal_(self.timesteps.weight, std=start.timestep_std)

    @property
    def causal(self) -> BackboneNetwork:
        """The backbone as decoders use it."""
        return cast(BackboneNetwork, self.backbone)

    def predict_last(self, embedded: Tensor) -> Tensor:
        """The prediction (B, target dim) for the last of the embedded timesteps (B, T, K, W).

        It does not depend on the last timestep's tokens after the one at which the prediction is read.
        """
        unread = len(self.layout.tokens) - 1 - self.layout.read_at
        tokens = embedded.flatten(1, 2)
        return self.read(self.causal.last(tokens[:, : tokens.shape[1] - unread]))

    def read(self, hidden: Tensor) -> Tensor:
        """The predictions (..., target dim) from the backbone's outputs (..., W) at the token `layout.read_at`."""
        prediction: Tensor = self.head(hidden)
        if self.layout.squash:
            prediction = torch.tanh(prediction)
        return prediction * self.output_scale
