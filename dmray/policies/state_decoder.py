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
from typing import cast

import numpy as np
import torch
from torch import Tensor

from dmray.models import Backbone, BackboneState
from dmray.policies.policy import SequencePolicy
from dmray.policies.rollout_fields import RolloutFields
from dmray.policies.sequence_model import SequenceModel


@dataclass
class _Stream:
    """One state of one stage; `begun` is the timestep that it began at (None: not yet)."""

    state: BackboneState
    begun: int | None = None


class StateDecoder:
    """See `dmray.policies.decoding.Decoder`; `streams` None is `recurrent`, a number m is `stream:m`, at most K."""

    def __init__(self, policy: SequencePolicy, num_rows: int, streams: int | None) -> None:
        self._fields = RolloutFields(policy, num_rows)
        self._period = None if streams is None else policy.recipe.model.context_length
        self._offsets = [0] if streams is None else [i * cast(int, self._period) // streams for i in range(streams)]
        self._streams = [
            [_Stream(_backbone(stage).begin(num_rows)) for _ in self._offsets] for stage in self._fields.stages
        ]
        self._late: list[Tensor | None] = [None] * len(self._fields.stages)  # the last timestep's unread tokens

    @torch.inference_mode()
    def decide(self, observations: np.ndarray, returns_to_go: np.ndarray) -> np.ndarray:
        """See `Decoder.decide`."""
        fields = self._fields
        fields.observe(observations, returns_to_go)
        for number, stage in enumerate(fields.stages):
            read = stage.layout.read_at + 1
            fields.now[stage.layout.target] = self._decide(number, stage, fields.embed(stage)[:, :read])
        for number, stage in enumerate(fields.stages):
            self._late[number] = fields.embed(stage)[:, stage.layout.read_at + 1 :]
        return fields.end()

    @torch.inference_mode()
    def keep(self, rows: np.ndarray) -> None:
        """See `Decoder.keep`."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self._fields.device)
        for stream in (stream for streams in self._streams for stream in streams):
            stream.state.keep(index)
        self._late = [None if late is None else late[index] for late in self._late]
        self._fields.keep(index)

    def _decide(self, number: int, stage: SequenceModel, early: Tensor) -> Tensor:
        """Move every state of the stage on; what the oldest says, (E, target dim)."""
        late, timestep, backbone = self._late[number], self._fields.timestep, _backbone(stage)
        oldest: tuple[int, Tensor] | None = None
        for stream, offset in zip(self._streams[number], self._offsets, strict=True):
            begins = timestep == offset if self._period is None else (timestep - offset) % self._period == 0
            if begins and timestep >= offset:
                stream.begun = timestep
                stream.state.restart()
            if stream.begun is None:
                continue
            tokens = early if late is None or stream.begun == timestep else torch.cat([late, early], dim=1)
            hidden = backbone.advance(tokens, stream.state)
            if oldest is None or stream.begun < oldest[0]:
                oldest = (stream.begun, hidden[:, -1])
        assert oldest is not None, "the first state begins at timestep 0"
        return stage.read(oldest[1])


def _backbone(stage: SequenceModel) -> Backbone:
    return cast(Backbone, stage.backbone)
