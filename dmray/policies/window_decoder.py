"""Decode mode `window`, as in the paper: the network runs on the last context_length timesteps at each step.

On a GPU the network is recorded once for whole windows and replayed at each step (`CapturedPrediction`).

Shapes: E live episodes, T timesteps, K tokens per timestep, W width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dmray.policies.captured import CapturedPrediction
from dmray.policies.rollout_fields import RolloutFields


class WindowDecoder:
    """See `dmray.policies.decoding.Decoder`. `context`: the number of timesteps of the window; None: context_length."""

    def __init__(self, fields: RolloutFields, context: int | None = None) -> None:
        self._fields = fields
        model = fields.policy.recipe.model
        length = context or model.context_length
        self._histories = [
            _History(fields.num_rows, length, len(stage.layout.tokens), model.d_model, fields.device)
            for stage in fields.stages
        ]
        self._whole = [CapturedPrediction(stage.predict_last, fields.num_rows) for stage in fields.stages]

    @torch.inference_mode()
    def decide(
        self, observations: np.ndarray, returns_to_go: np.ndarray, known_actions: np.ndarray | None = None
    ) -> np.ndarray:
        """See `Decoder.decide`."""
        fields = self._fields
        fields.observe(observations, returns_to_go, known_actions)
        for stage, history, whole in zip(fields.stages, self._histories, self._whole, strict=True):
            history.append(fields.embed(stage))
            if not fields.decided(stage):
                predict = whole if history.is_full else stage.predict_last
                fields.decide(stage, predict(history.window()))
        for stage, history in zip(fields.stages, self._histories, strict=True):
            if stage.layout.has_late_tokens:
                history.replace_last(fields.embed(stage))
        return fields.end()

    @torch.inference_mode()
    def keep(self, rows: np.ndarray) -> None:
        """See `Decoder.keep`."""
        index = self._fields.keep(rows)
        for history in self._histories:
            history.keep(index)

    def subgoals(self) -> np.ndarray | None:
        """See `Decoder.subgoals`."""
        return self._fields.subgoals()


class _History:
    """The embedded tokens of the last `length` timesteps.

    The buffer has twice that length. When it is full, the last timesteps are moved to its start.
    """

    def __init__(self, rows: int, length: int, tokens: int, width: int, device: torch.device) -> None:
        self._buffer = torch.zeros(rows, 2 * length, tokens, width, device=device)
        self._length, self._end = length, 0

    def append(self, timestep: Tensor) -> None:
        if self._end == 2 * self._length:
            kept = self._length - 1
            self._buffer[:, :kept] = self._buffer[:, self._end - kept :].clone()
            self._end = kept
        self._buffer[:, self._end] = timestep
        self._end += 1

    def replace_last(self, timestep: Tensor) -> None:
        self._buffer[:, self._end - 1] = timestep

    @property
    def is_full(self) -> bool:
        """Whether there are `length` timesteps or more."""
        return self._end >= self._length

    def window(self) -> Tensor:
        """(E, T, K, W), T up to `length`."""
        return self._buffer[:, max(0, self._end - self._length) : self._end]

    def keep(self, rows: Tensor) -> None:
        self._buffer = self._buffer[rows]
