"""The blocks of Decision Mamba's backbone (arXiv 2405.07943): Mamba-1 mixers (arXiv 2312.00752) with a gated MLP each.

Glossary (shapes: B windows, L tokens, D width, I inner width = expand * D, N state size, R = ceil(D / 16)):
    in_proj   D -> 2 I        the scanned branch x and the gate z
    conv1d    over L          causal depthwise convolution of d_conv taps on x
    x_proj    I -> R + 2 N    per token: the step size (low rank), B (input of the state), C (output of the state)
    dt_proj   R -> I          step size per channel; softplus after its bias
    A_log     (I, N)          A = -exp(A_log), the decay rates; (I, 1) for evolution `shared`
    D         (I,)            skip from x to the output
    out_proj  I -> D          back onto the residual path
    fc1, fc2  D -> 2 hidden -> D   gated MLP, hidden = D rounded up to a multiple of 128

Names of the mixer's parameters, shapes and initialisation are those of `mamba_ssm.Mamba`, so its weights can be loaded.
With another `MambaConfig.evolution` than `learned`, what is not used is no parameter: `frozen` has A_log as a buffer of
the same name, `no-decay` and `memoryless` have none, and `constant-step` has no rows of x_proj and no weight of dt_proj
for the step size (R = 0), only its bias. The initial values of all other parameters do not depend on the evolution.
A block is residual + mixer(norm(.)), then residual + mlp(norm2(.)); the residual keeps the input's dtype, which is
float32 under autocast.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmray.models.causal_conv import causal_conv_silu
from dmray.models.configs import MAMBA_MLP_MULTIPLE, Evolution, MambaConfig
from dmray.models.group_rows import Absent
from dmray.models.mamba_state import MixerState
from dmray.models.network import has_inner_hooks
from dmray.models.selective_scan import backend_of, memoryless_scan, selective_scan

if TYPE_CHECKING:
    from dmray.models.block_numba import BlockWeights

NORM_EPSILON = 1e-5
# mamba_ssm's range of initial step sizes (log-uniform), and their minimum
_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 1e-1, 1e-4


class Block(nn.Module):
    """residual + mixer(norm(.)), then residual + mlp(norm2(.))."""

    def __init__(self, spec: MambaConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(spec.d_model, eps=NORM_EPSILON)
        self.mixer = MambaMixer(spec)
        self.norm2 = nn.RMSNorm(spec.d_model, eps=NORM_EPSILON)
        self.mlp = _GatedMlp(spec.d_model)

    def forward(self, residual: Tensor) -> Tensor:
        if self.is_compiled(residual):
            from dmray.models.block_numba import numba_block

            return numba_block(residual, self._weights(), NORM_EPSILON)
        return self._finish(residual, self.mixer(self.norm(residual)))

    def last(self, residual: Tensor) -> Tensor:
        """The output for the last token only, (B, D)."""
        if self.is_compiled(residual) and not torch.is_grad_enabled():
            from dmray.models.block_numba import numba_block_last

            return numba_block_last(residual, self._weights(), NORM_EPSILON)
        scanned = self.mixer.scanned(self.norm(residual))
        return self._finish(residual[:, -1], self.mixer.out_proj(scanned[:, -1]))

    def advance(self, residual: Tensor, state: MixerState, absent: Absent | None) -> Tensor:
        return self._finish(residual, self.mixer.advance(self.norm(residual), state, absent))

    def is_compiled(self, residual: Tensor) -> bool:
        """Whether the whole block runs in compiled loops.

        It does where the scan does, with whole vectors of inner channels, and if no inner module has a hook.
        """
        mixer = self.mixer
        if mixer.memoryless or residual.dtype != torch.float32 or residual.numel() == 0:
            return False
        if torch.is_autocast_enabled(residual.device.type):
            return False
        if backend_of(mixer.D) != "numba" or has_inner_hooks(self):
            return False
        from dmray.models.block_numba import whole_vectors

        return whole_vectors(len(mixer.D))

    def _weights(self) -> BlockWeights:
        from dmray.models.block_numba import BlockWeights

        mixer, mlp = self.mixer, self.mlp
        return BlockWeights(
            norm=self.norm.weight,
            in_proj=mixer.in_proj.weight,
            taps=mixer.conv1d.weight.squeeze(1).t().contiguous(),
            conv_bias=mixer.conv_bias,
            x_proj=mixer.x_proj.weight,
            dt_proj=mixer.dt_proj.weight,
            dt_bias=mixer.dt_proj.bias,
            A=mixer.rates(),
            skip=mixer.D,
            out_proj=mixer.out_proj.weight,
            norm2=self.norm2.weight,
            fc1=mlp.fc1.weight,
            fc2=mlp.fc2.weight,
        )

    def _finish(self, residual: Tensor, mixed: Tensor) -> Tensor:
        residual = residual + mixed
        out: Tensor = residual + self.mlp(self.norm2(residual))
        return out


class MambaMixer(nn.Module):
    """The selective state space layer, `(B, L, D) -> (B, L, D)`; parameters named as in `mamba_ssm.Mamba`."""

    A_log: Tensor | None

    def __init__(self, spec: MambaConfig) -> None:
        super().__init__()
        inner, rank = spec.expand * spec.d_model, math.ceil(spec.d_model / 16)
        self.memoryless = spec.evolution == "memoryless"
        self.splits = (rank, spec.d_state, spec.d_state)
        self.in_proj = nn.Linear(spec.d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, spec.d_conv, groups=inner, padding=spec.d_conv - 1)
        self.x_proj = nn.Linear(inner, sum(self.splits), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        rates = _initial_rates(spec.evolution, inner, spec.d_state)
        if spec.evolution == "frozen":
            self.register_buffer("A_log", rates)
        else:
            self.register_parameter("A_log", None if rates is None else nn.Parameter(rates))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, spec.d_model, bias=False)
        _initialise_dt(self.dt_proj)
        if spec.evolution == "constant-step":
            self._remove_step_projection()

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.out_proj(self.scanned(hidden))
        return out

    def scanned(self, hidden: Tensor) -> Tensor:
        """The input (B, L, I) of the output projection."""
        x, z, dt, B, C = self._selected(hidden)
        delta = F.linear(dt, self.dt_proj.weight)
        if self.memoryless:
            return memoryless_scan(x, delta, B, C, self.D, z, self.dt_proj.bias)
        return selective_scan(x, delta, self.rates(), B, C, self.D, z, self.dt_proj.bias, delta_softplus=True)

    @property
    def conv_bias(self) -> Tensor:
        """(I,); as `torch.func.functional_call` has it, which `get_parameter` would not give."""
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    def rates(self) -> Tensor:
        """A (I, N), contiguous: minus the decay rates; zeros if the mixer has none."""
        inner, d_state = len(self.D), self.splits[1]
        if self.A_log is None:
            return self.D.new_zeros(inner, d_state)
        return (-self.A_log.exp()).expand(inner, d_state).contiguous()

    def step_sizes(self, hidden: Tensor) -> Tensor:
        """The step sizes (B, L, I) for the mixer's input (B, L, D)."""
        _, _, dt, _, _ = self._selected(hidden)
        return F.softplus(self.dt_proj(dt))

    def _selected(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """x (B, L, I) after the convolution, the gate z (B, L, I), and per token dt (B, L, R), B and C (B, L, N)."""
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        x = causal_conv_silu(x, self.conv1d.weight, self.conv_bias)
        return x, z, *self.x_proj(x).split(self.splits, dim=-1)

    def begin(self, num_rows: int) -> MixerState:
        """The state before the first token. A memoryless mixer does not use `hidden`."""
        inner, d_state = len(self.D), self.splits[1]
        taps = self.D.new_zeros(num_rows, self.conv1d.kernel_size[0] - 1, inner)
        return MixerState(taps, self.D.new_zeros(num_rows, d_state, inner))

    def advance(self, hidden: Tensor, state: MixerState, absent: Absent | None = None) -> Tensor:
        """The outputs for the next tokens (B, n, D). Updates `state`."""
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        if absent is not None:
            x[absent] = 0.0
        x = F.silu(self._convolve(x, state), inplace=True)
        if absent is not None:  # the convolution has a bias
            x[absent] = 0.0
        dt, B, C = self.x_proj(x).split(self.splits, dim=-1)
        if self.memoryless:
            y = memoryless_scan(x, F.linear(dt, self.dt_proj.weight), B, C, self.D, z, self.dt_proj.bias)
        else:
            y = selective_steps(x, F.softplus(self.dt_proj(dt)), self.rates(), B, C, state.hidden)
            y = torch.addcmul(y, x, self.D).mul_(F.silu(z))
        out: Tensor = self.out_proj(y)
        return out

    def _remove_step_projection(self) -> None:
        """Leave only the bias of the step size: the low rank R is 0, so that all products stay as they are."""
        rank, d_state, _ = self.splits
        self.splits = (0, d_state, d_state)
        self.x_proj.weight = nn.Parameter(self.x_proj.weight.detach()[rank:].clone())
        del self.dt_proj.weight
        self.dt_proj.register_buffer("weight", torch.empty(len(self.D), 0), persistent=False)

    def _convolve(self, x: Tensor, state: MixerState) -> Tensor:
        inputs, tokens = torch.cat([state.taps, x], dim=1), x.shape[1]
        state.taps = inputs[:, tokens:]
        filters = self.conv1d.weight.squeeze(1).t().contiguous()
        out = torch.addcmul(self.conv_bias, inputs[:, :tokens], filters[0])
        for tap in range(1, len(filters)):
            out.addcmul_(inputs[:, tap : tap + tokens], filters[tap])
        return out


def _initial_rates(evolution: Evolution, inner: int, d_state: int) -> Tensor | None:
    """A_log at the start, for A = -1 ... -N: over the states of each channel, or for `shared` over the channels."""
    log = torch.arange(1.0, d_state + 1).log()
    if evolution in ("no-decay", "memoryless"):
        return None
    return log[torch.arange(inner) % d_state][:, None] if evolution == "shared" else log.repeat(inner, 1)


def selective_steps(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, hidden: Tensor) -> Tensor:
    """The scan's recurrence for the next n tokens, in plain PyTorch. Returns y (B, n, I); updates `hidden` (B, N, I).

        h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t        y_t = C_t . h_t

    u, delta (B, n, I); A (I, N); B, C (B, n, N). Any device and dtype; deterministic; without gradients. On a CPU in
    float32 `dmray.models.steps_numba` is used instead.
    """
    rates, outputs = A.t(), []
    for t in range(u.shape[1]):
        step = delta[:, t, None, :]
        hidden.mul_(torch.exp(step * rates)).add_(B[:, t, :, None] * (step * u[:, t, None, :]))
        outputs.append(torch.matmul(C[:, t, None, :], hidden))
    return torch.cat(outputs, dim=1)


class _GatedMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = math.ceil(width / MAMBA_MLP_MULTIPLE) * MAMBA_MLP_MULTIPLE
        self.fc1 = nn.Linear(width, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        value, gate = self.fc1(hidden).chunk(2, dim=-1)
        out: Tensor = self.fc2(value * F.silu(gate))
        return out


def _initialise_dt(dt_proj: nn.Linear) -> None:
    bound = dt_proj.in_features**-0.5
    nn.init.uniform_(dt_proj.weight, -bound, bound)
    span = math.log(_DT_MAX) - math.log(_DT_MIN)
    dt = (torch.rand(dt_proj.out_features) * span + math.log(_DT_MIN)).exp().clamp(min=_DT_FLOOR)
    with torch.no_grad():
        dt_proj.bias.copy_(dt + (-torch.expm1(-dt)).log())  # the inverse of softplus
