"""What a causal transformer remembers of a rollout: the keys and values of all tokens since a group's start.

Shapes: B rows of one group, H heads, n tokens of a call, E numbers per head. Projections run for all groups at once;
each group attends to its own tokens only, so that a young one costs little.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class GroupCache:
    """One group's: `cached` (layers, 2, B, H, capacity, E), of which the first `length` count. Capacity doubles."""

    def __init__(self, cached: Tensor) -> None:
        self.cached, self.length = cached, 0
        self.absent = 0  # so many of the next call's tokens do not exist
        self._seen: Tensor | None = None

    def grow(self, tokens: int) -> None:
        """Make room for a call's tokens and see which of them see which."""
        tokens -= self.absent
        self.length += tokens
        capacity = self.cached.shape[4]
        if self.length > capacity:
            self.cached = F.pad(self.cached, (0, 0, 0, max(self.length, 2 * capacity) - capacity))
        ones = torch.ones(tokens, self.length, dtype=torch.bool, device=self.cached.device)
        self._seen = ones.tril(self.length - tokens) if tokens > 1 else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What the call's tokens see, (B, H, n, E) all; zeros for those that do not exist."""
        keys, values = self.cached[layer, ..., : self.length, :]
        query = query[:, :, self.absent :]
        first = self.length - query.shape[2]
        keys[:, :, first:], values[:, :, first:] = key[:, :, self.absent :], value[:, :, self.absent :]
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=self._seen)
        return F.pad(mixed, (0, 0, self.absent, 0)) if self.absent else mixed


class KeyValueCache:
    """See `dmray.models.network.BackboneState`."""

    def __init__(self, groups: list[GroupCache]) -> None:
        self.groups = groups
        self._restarted: GroupCache | None = None

    def restart(self, group: int, after: int = 0) -> None:
        self._restarted = self.groups[group]
        self._restarted.length, self._restarted.absent = 0, after

    def keep(self, rows: Tensor) -> None:
        for group in self.groups:
            group.cached = group.cached[:, :, rows]

    def grow(self, tokens: int) -> None:
        """Begin a call of so many tokens for each group."""
        for group in self.groups:
            if group is not self._restarted:
                group.absent = 0
            group.grow(tokens)
        self._restarted = None
