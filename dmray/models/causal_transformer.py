"""The causal transformer of Decision Transformer (arXiv 2106.01345) at the sizes of arXiv 2405.07943: GPT-2 blocks.

Glossary (shapes: B windows, L tokens, D width, H heads):
    ln_1, ln_2, ln_f  LayerNorms before attention, before the MLP, after the last block
    c_attn, c_fc      projections into attention (query, key, value) and into the MLP (4 D)
    c_proj            the projections back onto the residual path

Deliberate differences from GPT-2: ReLU or the exact GELU instead of its approximation, no token table, and no position
embedding, because the sequence model adds a timestep embedding to the tokens. The initial weights are those of the
config; its defaults are GPT-2's.

With gradients on a CPU, in float32, each block is one function whose loops between the matrix products are compiled
(`dmray.models.transformer_numba`), and dropout has a faster generator (`dmray.models.dropout_numba`). The rest is plain
PyTorch: without gradients, other devices and dtypes, autocast, `torch.func`, `torch.compile` and export,
`torch.use_deterministic_algorithms(True)`, hooks on the modules of a block, masks of dropout that are given
(`dmray.models.dropout`), and windows of more than 256 tokens without dropout of attention weights.

The state for acting step by step is a cache of keys and values of all tokens since a group's start (`KeyValueCache`).
Its shapes: B rows of one group, H heads, n tokens of a call, E numbers per head. Projections are computed for all
groups at once. Each group attends to its own tokens only, so a group that was restarted recently costs little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmray.models.configs import INIT_STD, TransformerConfig
from dmray.models.dropout import Dropout, has_given_masks
from dmray.models.network import has_hook, has_inner_hooks

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
_FEW_TOKENS = 256


class CausalTransformer(nn.Module):
    """GPT-2 blocks over `(B, L, d_model)`, with dropout in training mode only (`dmray.models.dropout`)."""

    def __init__(self, spec: TransformerConfig) -> None:
        super().__init__()
        self.dropout = Dropout(spec.dropout)
        self.layers = nn.ModuleList(_Block(spec) for _ in range(spec.n_layer))
        self.ln_f = nn.LayerNorm(spec.d_model)
        _initialise(self, spec)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self._dropped(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        normed: Tensor = self.ln_f(hidden)
        return normed

    def _dropped(self, tokens: Tensor) -> Tensor:
        compiled = _is_compiled(tokens, self.ln_f.weight) and not has_hook(self.dropout)
        if self.dropout.draws and compiled:
            from dmray.models.dropout_numba import numba_dropout

            return numba_dropout(tokens, self.dropout.p)
        dropped: Tensor = self.dropout(tokens)
        return dropped

    def last(self, tokens: Tensor) -> Tensor:
        """See `dmray.models.network.BackboneNetwork`."""
        hidden = tokens
        for layer in self.layers[:-1]:
            hidden = layer(hidden)
        normed: Tensor = self.ln_f(cast(_Block, self.layers[-1]).last(hidden))
        return normed

    def begin(self, num_rows: int, num_groups: int = 1) -> KeyValueCache:
        """See `dmray.models.network.BackboneNetwork`."""
        first = cast(_Block, self.layers[0]).attention
        shape = (len(self.layers), 2, num_rows, first.n_head, 0, first.head_width)
        return KeyValueCache([GroupCache(self.ln_f.weight.new_zeros(shape)) for _ in range(num_groups)])

    def advance(self, tokens: Tensor, state: KeyValueCache) -> Tensor:
        """See `dmray.models.network.BackboneNetwork`. The work for a token grows with the tokens before it."""
        hidden = tokens
        state.grow(tokens.shape[1])
        for number, layer in enumerate(self.layers):
            hidden = cast(_Block, layer).advance(hidden, state, number)
        normed: Tensor = self.ln_f(hidden)
        return normed


class _Block(nn.Module):
    def __init__(self, spec: TransformerConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(spec.d_model)
        self.attention = _Attention(spec)
        self.ln_2 = nn.LayerNorm(spec.d_model)
        self.mlp = _Mlp(spec)

    def forward(self, hidden: Tensor) -> Tensor:
        compiled = _is_compiled(hidden, self.ln_1.weight) and self.attention.keeps_weights(hidden.shape[1])
        if compiled and not (has_inner_hooks(self) or has_given_masks(self)):
            return self._compiled(hidden)
        return self._finish(hidden, self.attention(self.ln_1(hidden)))

    def last(self, hidden: Tensor) -> Tensor:
        """The output for the last token only, (B, D)."""
        return self._finish(hidden[:, -1], self.attention.last(self.ln_1(hidden)))

    def advance(self, hidden: Tensor, state: KeyValueCache, layer: int) -> Tensor:
        return self._finish(hidden, self.attention.advance(self.ln_1(hidden), state, layer))

    def _compiled(self, hidden: Tensor) -> Tensor:
        from dmray.models.transformer_numba import BlockParameters, BlockSetting, numba_block

        attention, mlp = self.attention, self.mlp
        layers = (self.ln_1, attention.c_attn, attention.c_proj, self.ln_2, mlp.c_fc, mlp.c_proj)
        parameters = BlockParameters(*(x for layer in layers for x in (layer.weight, layer.bias)))
        rates = attention.weight_dropout.rate, attention.residual_dropout.rate, mlp.residual_dropout.rate
        setting = BlockSetting(attention.n_head, mlp.activation, self.ln_1.eps, rates)
        return numba_block(hidden, parameters, setting)

    def _finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + attended
        out: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return out


def _is_compiled(x: Tensor, parameter: Tensor) -> bool:
    """Whether the compiled loops compute x: see the module's docstring."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.are_deterministic_algorithms_enabled():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    takes_them = all(given.device.type == "cpu" and given.dtype == torch.float32 for given in (x, parameter))
    return takes_them and x.numel() > 0 and not torch.is_autocast_enabled("cpu")


class _Attention(nn.Module):
    def __init__(self, spec: TransformerConfig) -> None:
        super().__init__()
        self.n_head, self.head_width = spec.n_head, spec.d_model // spec.n_head
        self.c_attn = nn.Linear(spec.d_model, 3 * spec.d_model)
        self.c_proj = nn.Linear(spec.d_model, spec.d_model)
        self.weight_dropout, self.residual_dropout = Dropout(spec.dropout), Dropout(spec.dropout)

    def keeps_weights(self, length: int) -> bool:
        """Whether all attention weights are kept for the backward pass anyway, or are few.

        Without dropout PyTorch keeps none, which saves memory and, in long windows, time.
        """
        return self.weight_dropout.rate > 0.0 or length <= _FEW_TOKENS

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self._split(hidden)
        if self.weight_dropout.given is None and not has_hook(self.weight_dropout):
            rate = self.weight_dropout.rate
            return self._joined(F.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True))
        scores = query @ key.transpose(-2, -1) / math.sqrt(self.head_width)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return self._joined(self.weight_dropout(scores.masked_fill(later, -math.inf).softmax(-1)) @ value)

    def last(self, hidden: Tensor) -> Tensor:
        """The attention output for the last token only, (B, D)."""
        query, key, value = self._split(hidden)
        return self._joined(F.scaled_dot_product_attention(query[:, :, -1:], key, value))[:, 0]

    def advance(self, hidden: Tensor, state: KeyValueCache, layer: int) -> Tensor:
        """Add each group's tokens to the group's cache and attend to it."""
        groups = zip(*(x.chunk(len(state.groups)) for x in self._split(hidden)), state.groups, strict=True)
        mixed = [group.attend(layer, query, key, value) for query, key, value, group in groups]
        return self._joined(torch.cat(mixed) if len(mixed) > 1 else mixed[0])

    def _split(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, (B, H, L, D / H) each."""
        split = self.c_attn(hidden).view(*hidden.shape[:2], 3, self.n_head, self.head_width)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        return query, key, value

    def _joined(self, mixed: Tensor) -> Tensor:
        out: Tensor = self.residual_dropout(self.c_proj(mixed.transpose(1, 2).flatten(2)))
        return out


class _Mlp(nn.Module):
    def __init__(self, spec: TransformerConfig) -> None:
        super().__init__()
        self.activation = spec.activation
        self.c_fc = nn.Linear(spec.d_model, 4 * spec.d_model)
        self.c_proj = nn.Linear(4 * spec.d_model, spec.d_model)
        self.residual_dropout = Dropout(spec.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.residual_dropout(self.c_proj(_ACTIVATIONS[self.activation](self.c_fc(hidden))))
        return out


class GroupCache:
    """The cache of one group: `cached` (layers, 2, B, H, capacity, E), of which the first `length` tokens are used.

    The capacity doubles when it is full.
    """

    def __init__(self, cached: Tensor) -> None:
        self.cached, self.length = cached, 0
        self.absent = 0  # the number of tokens of the next call that the group skips
        self._mask: Tensor | None = None

    def grow(self, tokens: int) -> None:
        """Make room for a call's tokens and compute the mask of their attention."""
        tokens -= self.absent
        self.length += tokens
        capacity = self.cached.shape[4]
        if self.length > capacity:
            self.cached = F.pad(self.cached, (0, 0, 0, max(self.length, 2 * capacity) - capacity))
        ones = torch.ones(tokens, self.length, dtype=torch.bool, device=self.cached.device)
        self._mask = ones.tril(self.length - tokens) if tokens > 1 else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Add the keys and values of a call's tokens, and return the attention output; all are (B, H, n, E).

        The outputs of tokens that the group skips are zeros.
        """
        keys, values = self.cached[layer, ..., : self.length, :]
        query = query[:, :, self.absent :]
        first = self.length - query.shape[2]
        keys[:, :, first:], values[:, :, first:] = key[:, :, self.absent :], value[:, :, self.absent :]
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=self._mask)
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
        """Begin a call with this number of tokens for each group."""
        for group in self.groups:
            if group is not self._restarted:
                group.absent = 0
            group.grow(tokens)
        self._restarted = None


def _initialise(model: nn.Module, spec: TransformerConfig) -> None:
    residual_std = INIT_STD / math.sqrt(2 * spec.n_layer) if spec.residual_init == "scaled" else INIT_STD
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if name.endswith("c_attn") and spec.attention_init == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.normal_(module.weight, std=residual_std if name.endswith("c_proj") else INIT_STD)
            nn.init.zeros_(module.bias)
