"""The published evaluation loop, one episode at a time. Tests and benchmarks compare lockstep evaluation with it.

One environment, batches of one, gradients on. At each step the training forward pass runs on the whole window of K
timesteps, which is padded on the right during the first K steps. It uses the networks of `dmray.policies`, but neither
decoders nor cohorts. Run it under `torch.use_deterministic_algorithms(True)` to use the plain PyTorch scan, which the
published code uses without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmray.fields import Field, Token
from dmray.policies import SequencePolicy

Environment = Callable[[np.ndarray], tuple[np.ndarray, float, bool]]  # from an action to observation, reward, ended


class LoopStep(NamedTuple):
    """The action and the reward of one step."""

    action: np.ndarray  # (A,) float32
    reward: float


def one_env_loop(
    policy: SequencePolicy, first: np.ndarray, environment: Environment, horizon: int, target_return: float | None
) -> Iterator[LoopStep]:
    """Yield the steps of one episode from observation `first` (S,) until `environment` says that it has ended."""
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
    """The token's values (1, K, dim) in the window that begins at `begin`; zeros after the current timestep."""
    padded = torch.cat([before[token.field].expand(token.lag, -1), fields[token.field]])[begin : begin + context]
    return torch.nn.functional.pad(padded, (0, 0, 0, context - len(padded)))[None]
