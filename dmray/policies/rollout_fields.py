"""The encoded fields of the live episodes that a policy acts in. All decoders use this class.

At each timestep a decoder calls `observe`, then `embed` and `decide` for each stage, and finally `end`.

Shapes: E live episodes, K tokens per timestep, W width, S observation_dim, A action_dim.
"""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from dmray.fields import Field, Token
from dmray.policies.policy import SequencePolicy
from dmray.policies.sequence_model import SequenceModel


class SubgoalSource(Protocol):
    """Gives the subgoals that the low network acts on, in place of the high network's predictions."""

    def subgoals(self, observations: np.ndarray) -> np.ndarray:
        """Raw states (E, S) to reach from the raw `observations` (E, S) of the live episodes."""

    def keep(self, rows: np.ndarray) -> None:
        """Continue with these rows only, as `Decoder.keep`."""


class RolloutFields:
    """The fields of the current timestep (`now`) and of the previous ones that tokens refer to.

    `steps`: the number of timesteps since the first observation. `timestep`: the current timestep of the episodes, one
    for all or (E,), as `first_timestep`. `source`: gives the subgoals; None: the policy predicts them.
    """

    def __init__(
        self,
        policy: SequencePolicy,
        num_rows: int,
        first_timestep: int | np.ndarray = 0,
        source: SubgoalSource | None = None,
    ) -> None:
        assert not policy.training, "a policy must be in evaluation mode to act"
        self.policy, self.device = policy, policy.state_mean.device
        self.stages = [cast(SequenceModel, stage) for stage in policy.stages]
        self.num_rows, self.steps, self._first_timestep = num_rows, 0, first_timestep
        self._source = source
        self._observations = np.zeros((num_rows, policy.recipe.shape.observation_dim), np.float32)
        self.now: dict[Field, Tensor] = {}
        reach = max(stage.layout.max_lag for stage in self.stages)
        self._past = [self._before_the_start(num_rows) for _ in range(reach)]  # the latest first

    @property
    def timestep(self) -> int | np.ndarray:
        return self._first_timestep + self.steps

    def observe(
        self, observations: np.ndarray, returns_to_go: np.ndarray, known_actions: np.ndarray | None = None
    ) -> None:
        """Begin a timestep with raw observations (E, S), raw returns-to-go (E,) and, if known, actions (E, A)."""
        assert np.all(self.timestep < self.policy.recipe.shape.max_timesteps), (
            "the episode is longer than max_timesteps"
        )
        self._observations = observations
        raw = {Field.STATE: observations, Field.RETURN_TO_GO: returns_to_go[:, None]}
        if known_actions is not None:
            raw[Field.ACTION] = known_actions
        tensors = {field: torch.as_tensor(value).to(self.policy.state_mean) for field, value in raw.items()}
        self.now = {field: self.policy.encode(field, value) for field, value in tensors.items()}
        if self._source is not None:
            given = torch.as_tensor(self._source.subgoals(observations)).to(self.policy.state_mean)
            self.now[Field.SUBGOAL] = self.policy.encode_subgoal(given, tensors[Field.STATE])

    def decided(self, stage: SequenceModel) -> bool:
        """Whether the stage's target is known at this timestep already, so that its network need not predict it."""
        return stage.layout.target in self.now

    def decide(self, stage: SequenceModel, prediction: Tensor) -> None:
        """Set the stage's target at this timestep; (E, target dim), encoded."""
        self.now[stage.layout.target] = prediction

    def embed(self, stage: SequenceModel) -> Tensor:
        """The embedded tokens (E, K, W) of this timestep. Fields that are not known yet are zeros, never read."""
        values = {token: self._value(token)[:, None] for token in stage.layout.tokens}
        rows = len(self.now[Field.STATE])
        timesteps = torch.as_tensor(self.timestep, dtype=torch.int64, device=self.device).expand(rows)[:, None]
        return stage.embed(values, timesteps)[:, 0]

    def end(self) -> np.ndarray:
        """End the timestep, after all stages have decided. Returns its actions (E, A) float32."""
        self._past = [self.now, *self._past][: len(self._past)]
        self.steps += 1
        actions: np.ndarray = self.now[Field.ACTION].float().cpu().numpy()
        return actions

    def keep(self, rows: np.ndarray) -> Tensor:
        """Continue with these rows (E',) only. Returns them as an index on the policy's device."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.device)
        self._past = [{field: values[index] for field, values in fields.items()} for fields in self._past]
        self.now = {field: values[index] for field, values in self.now.items()}
        self._observations = self._observations[rows]
        if isinstance(self._first_timestep, np.ndarray):
            self._first_timestep = self._first_timestep[rows]
        if self._source is not None:
            self._source.keep(rows)
        self.num_rows = len(rows)
        return index

    def subgoals(self) -> np.ndarray | None:
        """See `Decoder.subgoals`."""
        if Field.SUBGOAL not in self.now:
            return None
        present = torch.as_tensor(self._observations).to(self.policy.state_mean)
        states = self.policy.subgoal_states(self.now[Field.SUBGOAL], present)
        subgoals: np.ndarray = states.float().cpu().numpy()
        return subgoals

    def _value(self, token: Token) -> Tensor:
        if token.lag > 0:
            return self._past[token.lag - 1][token.field]
        if token.field in self.now:
            return self.now[token.field]
        state = self.now[Field.STATE]
        return state.new_zeros(len(state), self.policy.recipe.shape.dim(token.field))

    def _before_the_start(self, rows: int) -> dict[Field, Tensor]:
        """The fields of a timestep before the first: encoded zeros, as in training windows."""
        shape = self.policy.recipe.shape
        zeros = {field: self.policy.state_mean.new_zeros(rows, shape.dim(field)) for field in Field}
        return {field: self.policy.encode(field, value) for field, value in zeros.items()}
