"""The published evaluation loop, one episode at a time: what lockstep evaluation is held against and measured against.

One environment, a batch of one, gradients on, and at each step the whole window of K timesteps run again by the
training forward pass, right-padded while the episode is younger than K. It shares the networks with `dmray.policies`
and nothing else: no decoder, no cohort. Run it under `torch.use_deterministic_algorithms(True)` for the plain PyTorch
scan, which is what the published code runs where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmray.fields import Field, Token
from dmray.policies import SequencePolicy

Environment = Callable[[np.ndarray], tuple[np.ndarray, float, bool]]  # an action to observation, reward, ended


class LoopStep(NamedTuple):
    """What one step decided and was paid."""

    action: np.ndarray  # (A,) float32
    reward: float


def one_env_loop(
    policy: SequencePolicy, first: np.ndarray, environment: Environment, horizon: int, target_return: float | None
) -> Iterator[LoopStep]:
    """One episode from observation `first` (S,), step by step, until `environment` ends it."""
    shape, context = policy.recipe.shape, policy.recipe.model.context_length
    fields = {field: torch.zeros(horizon, shape.dim(field)) for field in Field}
    before = {field: policy.encode(field, torch.zeros(1, shape.dim(field))) for field in Field}
    observation, to_go, ended, t = first, target_return or 0.0, False, 0
    while not ended:
        fields[Field.STATE][t] = policy.encode(Field.STATE, torch.from_numpy(observation.astype(np.float32)))
        fields[Field.RETURN_TO_GO][t] = policy.encode(Field.RETURN_TO_GO, torch.tensor([to_go], dtype=torch.float32))
        begin = max(0, t + 1 - context)
        timesteps = torch.arange(begin, begin + context).clamp(max=shape.max_timesteps - 1)[None]
        for layout, stage in zip(policy.method.stages, policy.stages, strict=True):
            values = {token: _window(fields, before, token, begin, context) for token in layout.tokens}
            fields[layout.target][t] = stage(values, timesteps)[0, t - begin].detach()
        action = fields[Field.ACTION][t].numpy().copy()
        observation, reward, ended = environment(action)
        to_go, t = to_go - reward, t + 1
        yield LoopStep(action, reward)


def _window(fields: dict[Field, Tensor], before: dict[Field, Tensor], token: Token, begin: int, context: int) -> Tensor:
    """The token's values (1, K, dim) of the window that begins at timestep `begin`; zeros where nothing is yet."""
    padded = torch.cat([before[token.field].expand(token.lag, -1), fields[token.field]])[begin : begin + context]
    return torch.nn.functional.pad(padded, (0, 0, 0, context - len(padded)))[None]
