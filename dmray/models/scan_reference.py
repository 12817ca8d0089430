"""The scan's recurrence in plain PyTorch: the definition, and one with a hand-written backward that keeps the states.

Shapes: B windows, L tokens, D channels, N state size. u, delta (B, L, D); A (D, N); B, C (B, L, N); y (B, L, D).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def loop_recurrence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y of the recurrence, step by step as it is written."""
    state = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for t in range(u.shape[1]):
        step = delta[:, t, :, None]
        state = torch.exp(step * A) * state + step * u[:, t, :, None] * B[:, t, None, :]
        outputs.append((state * C[:, t, None, :]).sum(-1))
    return torch.stack(outputs, dim=1)


def stored_recurrence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The same, several times faster than autograd through the loop; differentiable once."""
    y: Tensor = _StoredStates.apply(u, delta, A, B, C)  # type: ignore[no-untyped-call]
    return y


class _StoredStates(torch.autograd.Function):
    """Time comes first inside, (L, B, D, N), so that a step is one contiguous block. Of the two large tensors, states
    are kept and decays computed again."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        u, delta, B, C = (x.transpose(0, 1).contiguous() for x in (u, delta, B, C))
        decay = torch.exp(delta[..., None] * A)
        states = (delta * u)[..., None] * B[:, :, None, :]
        for t in range(1, len(states)):
            states[t].addcmul_(decay[t], states[t - 1])
        ctx.save_for_backward(u, delta, A, B, C, states)
        return torch.matmul(states, C[..., None]).squeeze(-1).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, states = ctx.saved_tensors
        grad_y = grad_y.transpose(0, 1).contiguous()
        decay = torch.exp(delta[..., None] * A)
        grad_states = grad_y[..., None] * C[:, :, None, :]
        for t in range(len(states) - 2, -1, -1):
            grad_states[t].addcmul_(decay[t + 1], grad_states[t + 1])
        grad_entered = torch.matmul(grad_states, B[..., None]).squeeze(-1)  # with respect to delta * u
        grad_exponent = grad_states[1:] * states[:-1] * decay[1:]  # with respect to delta * A; state -1 is zero
        grad_delta = grad_entered * u
        grad_delta[1:] += (grad_exponent * A).sum(-1)
        grad_A = (grad_exponent * delta[1:, :, :, None]).sum((0, 1))
        grad_B = torch.matmul((delta * u)[:, :, None, :], grad_states).squeeze(2)
        grad_C = torch.matmul(grad_y[:, :, None, :], states).squeeze(2)
        grad_u, grad_delta, grad_B, grad_C = (
            x.transpose(0, 1) for x in (grad_entered * delta, grad_delta, grad_B, grad_C)
        )
        return grad_u, grad_delta, grad_A, grad_B, grad_C
