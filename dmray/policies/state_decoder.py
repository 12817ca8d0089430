"""Decoding modes that carry the networks' state from step to step in place of running a window again.

`recurrent`: one state for the whole episode: Mamba's constant-time step, the transformer's growing cache. The context
is longer than any that training showed.

`stream:m`: m states, each begun anew every context_length (K) timesteps, K/m apart; the oldest acts. So the context
stays within K (1 - 1/m) and K timesteps, which training has shown: its windows begin from an empty state, and every
position of them has a loss. A state that is j timesteps old is what a window of j timesteps would give.

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
class Stagger:
    """When each of `states` states begins anew, once every `period` timesteps, and which is the oldest.

    State s begins at timesteps s * period // states + any number of periods, so `states` need not divide the period.
    State 0 begins with the episode, when the others have yet to begin.
    """

    period: int
    states: int

    def begins(self, timestep: int) -> int | None:
        """The state that begins anew at this timestep."""
        place = timestep % self.period
        state = -(-place * self.states // self.period)  # the first whose turn is there or later
        return state if state < self.states and state * self.period // self.states == place else None

    def oldest(self, timestep: int) -> int:
        """The state that begins anew next: it has seen at most `period` timesteps, this one included."""
        if timestep < self.period:
            return 0
        place = timestep % self.period + 1
        return -(-place * self.states // self.period) % self.states


class StateDecoder:
    """See `dmray.policies.decoding.Decoder`; `streams` None is `recurrent`, a number m is `stream:m`, at most K.

    A timestep is one call of each stage's backbone, for all states of all episodes: the tokens of the last timestep
    after the one that was read, then those of this one up to the one that is.
    """

    def __init__(self, fields: RolloutFields, streams: int | None = None) -> None:
        self._fields, rows = fields, fields.num_rows
        self._stagger = None if streams is None else Stagger(fields.policy.recipe.model.context_length, streams)
        self._num_states = streams or 1
        self._states = [stage.causal.begin(rows, self._num_states) for stage in fields.stages]
        self._late = [stage.norm.weight.new_zeros(rows, 0, len(stage.norm.weight)) for stage in fields.stages]

    @torch.inference_mode()
    def decide(
        self, observations: np.ndarray, returns_to_go: np.ndarray, done_actions: np.ndarray | None = None
    ) -> np.ndarray:
        """See `Decoder.decide`."""
        fields, stages = self._fields, self._fields.stages
        fields.observe(observations, returns_to_go, done_actions)
        embedded = []
        for number, stage in enumerate(stages):
            embedded.append(fields.embed(stage))
            prediction = self._advance(number, stage, embedded[-1])
            if not fields.decided(stage):
                fields.decide(stage, prediction)
        for number, stage in enumerate(stages):
            whole = fields.embed(stage) if stage.layout.waits else embedded[number]
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
        """Advance every state of the stage by a timestep; the prediction of the oldest state, (E, target dim)."""
        late, oldest = self._late[number], 0
        if self._stagger is not None:
            oldest, begins = self._stagger.oldest(self._fields.steps), self._stagger.begins(self._fields.steps)
            if begins is not None:
                self._states[number].restart(begins, after=late.shape[1])
        tokens = torch.cat([late, embedded[:, : stage.layout.read_at + 1]], dim=1).repeat(self._num_states, 1, 1)
        hidden = stage.causal.advance(tokens, self._states[number])
        return stage.read(hidden[oldest * len(late) : (oldest + 1) * len(late), -1])
