"""Mamba's next tokens on one CPU core: the whole network, with compiled loops between the matrix products.

Without them, most of the time of acting is spent on many small operations. So the weights are converted once for a
rollout, results are written to buffers that are reused in the next call, and there is one compiled loop each for the
norms, for the convolution with SiLU, for the recurrence with step size, skip and gate, and for the MLP's gate. Inner
channels are padded to whole vectors.

Shapes: B rows, n tokens, M = B * n, D width, I inner width (padded), N state size, K taps, R rank of the step size, H
hidden width of the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmray.models.block_numba import gate_into, rms_norm_into
from dmray.models.compiled import compiled
from dmray.models.flat_rows import flat
from dmray.models.group_rows import Absent
from dmray.models.lanes import FAST, LANES, LOG2_E, exp2, load, sigmoid, softplus, spread, store
from dmray.models.mamba_block import Block
from dmray.models.mamba_state import MixerState

_ZERO = np.float32(0)
_NO_ABSENT = (0, 0, 0)  # first row, last row (exclusive), number of tokens


class CompiledSteps:
    """`Mamba.advance` in float32 without gradients. The weights must not change while it is in use."""

    def __init__(self, blocks: Sequence[Block], final_norm: nn.RMSNorm) -> None:
        self._sizes = blocks[0].mixer.splits
        self._layers = [_weights(block) for block in blocks]
        self._norm, self._epsilon = flat(final_norm.weight), np.float32(final_norm.eps or 0.0)
        self._buffers: _Buffers | None = None

    def begin(self, num_rows: int) -> list[MixerState]:
        """Each layer's state before the first token."""
        return [
            MixerState(torch.zeros(num_rows, len(layer.filters) - 1, inner), torch.zeros(num_rows, size, inner))
            for layer in self._layers
            for size, inner in [layer.rates.shape]
        ]

    def advance(self, tokens: Tensor, states: Sequence[MixerState], absent: Absent | None) -> Tensor:
        """The outputs (B, n, D) for the next tokens (B, n, D). Updates `states`."""
        rows, num_tokens, width = tokens.shape
        # the loops do not check bounds
        assert all(len(state.hidden) == rows for state in states), "the state has another number of rows"
        gone = _NO_ABSENT if absent is None else (absent[0].start, absent[0].stop, absent[1].stop)
        work = self._buffers_for(rows, num_tokens)
        work.residual.copy_(tokens.reshape(-1, width))
        for layer, state in zip(self._layers, states, strict=True):
            self._mix(layer, state, work, (rows, num_tokens), gone)
            self._norm_into(work, layer.norm2, work.normed)
            torch.mm(work.normed, layer.fc1, out=work.opened)
            gate_into(work.opened.numpy(), work.gated.numpy())
            work.residual.addmm_(work.gated, layer.fc2)
        normed = torch.empty_like(work.residual)
        self._norm_into(work, self._norm, normed)
        return normed.view(tokens.shape)

    def _mix(
        self, layer: _Layer, state: MixerState, work: _Buffers, batch: tuple[int, int], gone: tuple[int, int, int]
    ) -> None:
        rank, _, _ = self._sizes
        self._norm_into(work, layer.norm, work.normed)
        torch.mm(work.normed, layer.in_proj, out=work.both)
        both, x = flat(work.both), flat(work.x)
        _convolve((*batch, *layer.filters.shape), both, flat(state.taps), layer.filters, layer.conv_bias, x, gone)
        torch.mm(work.x, layer.x_proj, out=work.mixed)
        torch.mm(work.mixed[:, :rank], layer.dt_proj, out=work.steps)
        if layer.memoryless:
            self._weigh(layer, work)
        else:
            mixed, steps = work.mixed.numpy()[:, rank:], flat(work.steps)
            _recur(batch, layer.rates, layer.dt_bias, layer.skip, both, mixed, steps, flat(state.hidden), x)
        work.residual.addmm_(work.x, layer.out_proj)

    def _weigh(self, layer: _Layer, work: _Buffers) -> None:
        """Replace `work.x` by the gated output of a mixer without memory (`memoryless_scan`)."""
        rank, inner = self._sizes[0], work.x.shape[1]
        B, C = work.mixed[:, rank:].chunk(2, dim=1)
        bias, skip = torch.from_numpy(layer.dt_bias), torch.from_numpy(layer.skip)
        weight = F.softplus(work.steps.add_(bias)).mul_((B * C).sum(1, keepdim=True)).add_(skip)
        work.x.mul_(weight).mul_(F.silu(work.both[:, inner:]))

    def _norm_into(self, work: _Buffers, weight: np.ndarray, out: Tensor) -> None:
        rms_norm_into(work.residual.numpy(), weight, self._epsilon, out.numpy(), work.scales.numpy())

    def _buffers_for(self, rows: int, num_tokens: int) -> _Buffers:
        """Buffers for this number of rows and tokens: those of the last call, or new ones."""
        if self._buffers is None or len(self._buffers.x) != rows * num_tokens:
            layer = self._layers[0]
            (width, both), (hidden, _) = layer.in_proj.shape, layer.fc2.shape
            widths = (width, width, both, both // 2, sum(self._sizes), both // 2, 2 * hidden, hidden)
            matrices = (torch.empty(rows * num_tokens, columns) for columns in widths)
            self._buffers = _Buffers(torch.empty(rows * num_tokens), *matrices)
        return self._buffers


class _Buffers(NamedTuple):
    """The results inside a layer; each is (M, width in the comment)."""

    scales: Tensor  # (M,): of the norm, not read
    residual: Tensor  # D
    normed: Tensor  # D
    both: Tensor  # 2 I: the convolution's input, and the gate
    x: Tensor  # I: the recurrence's input, then its output
    mixed: Tensor  # R + 2 N: step size (low rank), B, C
    steps: Tensor  # I: step sizes before bias and softplus
    opened: Tensor  # 2 H: values and gates of the MLP
    gated: Tensor  # H


class _Layer(NamedTuple):
    """A block's weights: matrices (in, out) for the products, and arrays in the form that the loops read."""

    norm: np.ndarray
    in_proj: Tensor
    filters: np.ndarray  # (K, I)
    conv_bias: np.ndarray
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: np.ndarray
    rates: np.ndarray  # (N, I), A times log2(e)
    skip: np.ndarray
    memoryless: bool  # no state is carried; the rates are not used
    out_proj: Tensor
    norm2: np.ndarray
    fc1: Tensor
    fc2: Tensor


def _weights(block: Block) -> _Layer:
    mixer, width = block.mixer, block.norm.weight.shape[0]
    inner = len(mixer.D)
    missing = -inner % LANES

    def channels_first(x: Tensor) -> Tensor:
        return F.pad(x.detach(), (0, 0, 0, missing))

    def vector(x: Tensor) -> np.ndarray:
        return flat(F.pad(x.detach(), (0, missing)))

    in_proj = F.pad(mixer.in_proj.weight.detach().view(2, inner, width), (0, 0, 0, missing)).flatten(0, 1)
    return _Layer(
        norm=flat(block.norm.weight),
        in_proj=in_proj.t(),
        filters=channels_first(mixer.conv1d.weight.squeeze(1)).t().contiguous().numpy(),
        conv_bias=vector(mixer.conv1d.get_parameter("bias")),
        x_proj=F.pad(mixer.x_proj.weight.detach(), (0, missing)).t(),
        dt_proj=channels_first(mixer.dt_proj.weight).t(),
        dt_bias=vector(mixer.dt_proj.bias),
        rates=channels_first(mixer.rates() * float(LOG2_E)).t().contiguous().numpy(),
        skip=vector(mixer.D),
        memoryless=mixer.memoryless,
        out_proj=F.pad(mixer.out_proj.weight.detach(), (0, missing)).t(),
        norm2=flat(block.norm2.weight),
        fc1=block.mlp.fc1.weight.detach().t(),
        fc2=block.mlp.fc2.weight.detach().t(),
    )


@compiled(**FAST, nogil=True)
def _convolve(sizes: Any, both: Any, taps: Any, filters: Any, bias: Any, x: Any, gone: Any) -> None:
    """Write x (M, I) from the first halves of `both`. Updates `taps` (B, K - 1, I). Tokens in `gone` are zeros."""
    rows, tokens, num_taps, channels = sizes
    filters, before = filters.reshape(-1), num_taps - 1
    entered = np.empty((before + tokens) * LANES, np.float32)
    for b in range(rows):
        absent = gone[2] if gone[0] <= b < gone[1] else 0
        for first in range(0, channels, LANES):
            for j in range(before):
                store(entered, j * LANES, load(taps, (b * before + j) * channels + first))
            for t in range(tokens):
                given = spread(_ZERO) if t < absent else load(both, (b * tokens + t) * 2 * channels + first)
                store(entered, (before + t) * LANES, given)
            for t in range(tokens):
                total = load(bias, first)
                for j in range(num_taps):
                    total = total + load(filters, j * channels + first) * load(entered, (t + j) * LANES)
                shown = spread(_ZERO) if t < absent else total * sigmoid(total)  # the convolution has a bias
                store(x, (b * tokens + t) * channels + first, shown)
            for j in range(before):
                store(taps, (b * before + j) * channels + first, load(entered, (tokens + j) * LANES))


@compiled(**FAST, nogil=True)
def _recur(
    batch: Any, rates: Any, bias: Any, skip: Any, both: Any, mixed: Any, steps: Any, hidden: Any, x: Any
) -> None:
    """Replace x (M, I) by the gated output of the recurrence. Updates `hidden` (B, N, I). `mixed` has B and C."""
    rows, tokens = batch
    size, channels = rates.shape
    rates = rates.reshape(-1)
    for b in range(rows):
        for first in range(0, channels, LANES):
            for t in range(tokens):
                token = b * tokens + t
                place = token * channels + first
                entry = load(x, place)
                step = softplus(load(steps, place) + load(bias, first))
                entering, out = step * entry, load(skip, first) * entry
                for n in range(size):
                    state = (b * size + n) * channels + first
                    h = (
                        exp2(step * load(rates, n * channels + first)) * load(hidden, state)
                        + entering * mixed[token, n]
                    )
                    store(hidden, state, h)
                    out = out + h * mixed[token, size + n]
                gate = load(both, token * 2 * channels + channels + first)
                store(x, place, out * gate * sigmoid(gate))
