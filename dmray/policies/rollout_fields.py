"""What a rollout knows at each timestep, encoded as the networks take it: the part that all decoders share.

Shapes: E live episodes, K tokens per timestep, W width.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from dmray.fields import Field, Token
from dmray.policies.policy import SequencePolicy
from dmray.policies.sequence_model import SequenceModel


class RolloutFields:
    """The fields of this timestep and of as many before it as tokens reach back."""

    def __init__(self, policy: SequencePolicy, num_rows: int) -> None:
        assert not policy.training, "acting needs the policy in evaluation mode"
        self.policy, self.device = policy, policy.state_mean.device
        self.stages = [cast(SequenceModel, stage) for stage in policy.stages]
        self.timestep = 0
        self.now: dict[Field, Tensor] = {}
        reach = max(stage.layout.max_lag for stage in self.stages)
        self._past = [self._before_the_start(num_rows) for _ in range(reach)]  # the latest first

    def observe(self, observations: np.ndarray, returns_to_go: np.ndarray) -> None:
        """Begin a timestep with raw observations (E, S) and raw returns-to-go (E,)."""
        assert self.timestep < self.policy.recipe.shape.max_timesteps, "the episode outlasts the policy's shape"
        raw = {Field.STATE: observations, Field.RETURN_TO_GO: returns_to_go[:, None]}
        tensors = {field: torch.as_tensor(value).to(self.policy.state_mean) for field, value in raw.items()}
        self.now = {field: self.policy.encode(field, value) for field, value in tensors.items()}

    def embed(self, stage: SequenceModel) -> Tensor:
        """This timestep's tokens, (E, K, W); a field that is not decided yet stands as zeros, which nothing reads."""
        values = {token: self._value(token)[:, None] for token in stage.layout.tokens}
        rows = len(self.now[Field.STATE])
        timesteps = torch.full((rows, 1), self.timestep, dtype=torch.int64, device=self.device)
        return stage.embed(values, timesteps)[:, 0]

    def end(self) -> np.ndarray:
        """End the timestep, all of whose fields are decided: its actions (E, A) float32."""
        self._past = [self.now, *self._past][: len(self._past)]
        self.timestep += 1
        actions: np.ndarray = self.now[Field.ACTION].float().cpu().numpy()
        return actions

    def keep(self, rows: Tensor) -> None:
        self._past = [{field: values[rows] for field, values in fields.items()} for fields in self._past]

    def _value(self, token: Token) -> Tensor:
        if token.lag > 0:
            return self._past[token.lag - 1][token.field]
        if token.field in self.now:
            return self.now[token.field]
        state = self.now[Field.STATE]
        return state.new_zeros(len(state), self.policy.recipe.shape.dim(token.field))

    def _before_the_start(self, rows: int) -> dict[Field, Tensor]:
        """The fields of a timestep before the first: zeros, encoded, as the training windows have them."""
        shape = self.policy.recipe.shape
        zeros = {field: self.policy.state_mean.new_zeros(rows, shape.dim(field)) for field in Field}
        return {field: self.policy.encode(field, value) for field, value in zeros.items()}
