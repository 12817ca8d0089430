"""Decode modes that keep the networks' state from step to step, instead of running the whole window at each step.

`recurrent`: one state for the whole episode (Mamba's constant-time step, or the transformer's growing cache). After K
timesteps (context_length) the context is longer than in training.

`stream:m`: m states. Each is restarted every K timesteps, at different times that are K/m apart, and the oldest one
acts. So the context has between K (1 - 1/m) and K timesteps. Training has shown all these lengths, because its windows
begin with an empty state and every position has a loss. A state that is j timesteps old equals a window of j timesteps.

All modes give the same actions while the episode is shorter than K. Shapes: E live episodes, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmray.policies.rollout_fields import RolloutFields
from dmray.policies.sequence_model import SequenceModel


@dataclass(frozen=True)
class RestartSchedule:
    """The timesteps at which each of `states` states is restarted, once every `period` timesteps.

    State s is restarted at timesteps s * period // states + i * period, so `states` need not divide `period`. During
    the first period state 0 is the only one that has seen the episode from its start, so it acts.
    """

    period: int
    states: int

    def restarted(self, timestep: int) -> int | None:
        """The state that is restarted at this timestep; None if there is none."""
        place = timestep % self.period
        state = -(-place * self.states // self.period)  # the first that is restarted at this place or later
        return state if state < self.states and state * self.period // self.states == place else None

    def oldest(self, timestep: int) -> int:
        """The state that acts at this timestep: the one that is restarted next, after at most `period` timesteps."""
        if timestep < self.period:
            return 0
        place = timestep % self.period + 1
        return -(-place * self.states // self.period) % self.states


class StateDecoder:
    """See `dmray.policies.decoding.Decoder`. `streams`: None for `recurrent`, m (at most K) for `stream:m`.

    At each timestep each stage's backbone is called once, for all states of all episodes. Its new tokens are those of
    the previous timestep after `read_at`, then those of this timestep up to `read_at`.
    """

    def __init__(self, fields: RolloutFields, streams: int | None = None) -> None:
        self._fields, rows = fields, fields.num_rows
        self._schedule = (
            None if streams is None else RestartSchedule(fields.policy.recipe.model.context_length, streams)
        )
        self._num_states = streams or 1
        self._states = [stage.causal.begin(rows, self._num_states) for stage in fields.stages]
        self._late = [stage.norm.weight.new_zeros(rows, 0, len(stage.norm.weight)) for stage in fields.stages]

    @torch.inference_mode()
    def decide(
        self, observations: np.ndarray, returns_to_go: np.ndarray, known_actions: np.ndarray | None = None
    ) -> np.ndarray:
        """See `Decoder.decide`."""
        fields, stages = self._fields, self._fields.stages
        fields.observe(observations, returns_to_go, known_actions)
        embedded = []
        for number, stage in enumerate(stages):
            embedded.append(fields.embed(stage))
            prediction = self._advance(number, stage, embedded[-1])
            if not fields.decided(stage):
                fields.decide(stage, prediction)
        for number, stage in enumerate(stages):
            whole = fields.embed(stage) if stage.layout.has_late_tokens else embedded[number]
            self._late[number] = whole[:, stage.layout.read_at + 1 :]
        return fields.end()

    @torch.inference_mode()
    def keep(self, rows: np.ndarray) -> None:
        """See `Decoder.keep`."""
        index = self._fields.keep(rows)
        for state in self._states:
            state.keep(index)
        self._late = [late[index] for late in self._late]

    def subgoals(self) -> np.ndarray | None:
        """See `Decoder.subgoals`."""
        return self._fields.subgoals()

    def _advance(self, number: int, stage: SequenceModel, embedded: Tensor) -> Tensor:
        """Advance all states of the stage by one timestep. Returns the oldest state's prediction (E, target dim)."""
        late, oldest = self._late[number], 0
        if self._schedule is not None:
            oldest, restarted = self._schedule.oldest(self._fields.steps), self._schedule.restarted(self._fields.steps)
            if restarted is not None:
                self._states[number].restart(restarted, after=late.shape[1])
        tokens = torch.cat([late, embedded[:, : stage.layout.read_at + 1]], dim=1).repeat(self._num_states, 1, 1)
        hidden = stage.causal.advance(tokens, self._states[number])
        return stage.read(hidden[oldest * len(late) : (oldest + 1) * len(late), -1])
