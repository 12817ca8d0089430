"""How a trained policy acts: for all live episodes of a cohort at once, with its history in an object of the caller's.

Shapes: E live episodes, T timesteps, K tokens per timestep, W width. A cohort moves in lockstep: one timestep for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from dmray.errors import SpecError
from dmray.fields import Field, Token
from dmray.policies.layout import Layout
from dmray.policies.policy import SequencePolicy
from dmray.policies.sequence_model import SequenceModel
from dmray.registry import lookup


class Decoder(Protocol):
    """The state of one cohort's rollout, from its first timestep on."""

    def decide(self, observations: np.ndarray, returns_to_go: np.ndarray) -> np.ndarray:
        """Actions (E, A) float32 for raw observations (E, S) and raw returns-to-go (E,); moves to the next timestep.

        Policies without a return-to-go ignore it. An episode may not outlast the shape's `max_timesteps`.
        """

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these of the current rows only, in this order; positions (E',) int."""


def make_decoder(policy: SequencePolicy, decode: str, num_rows: int) -> Decoder:
    """A fresh decoder for `num_rows` episodes at timestep 0; `policy` is in evaluation mode and stays as it is.

    Raises:
        SpecError: no decoding mode of that name.
    """
    return lookup("decoding mode", decode, DECODERS, SpecError)(policy, num_rows)


class WindowDecoder:
    """`window`, the paper's protocol: the last context_length timesteps are run again for each decision."""

    def __init__(self, policy: SequencePolicy, num_rows: int) -> None:
        assert not policy.training, "acting needs the policy in evaluation mode"
        self._policy = policy
        self._stages = [cast(SequenceModel, stage) for stage in policy.stages]
        spec, self._device = policy.recipe.model, policy.state_mean.device
        self._histories = [
            _History(num_rows, spec.context_length, len(stage.layout.tokens), spec.d_model, self._device)
            for stage in self._stages
        ]
        reach = max(stage.layout.max_lag for stage in self._stages)
        self._past = [_before_the_start(policy, num_rows) for _ in range(reach)]  # encoded fields, the latest first
        self._timestep = 0

    @torch.inference_mode()
    def decide(self, observations: np.ndarray, returns_to_go: np.ndarray) -> np.ndarray:
        """See `Decoder.decide`."""
        assert self._timestep < self._policy.recipe.shape.max_timesteps, "the episode outlasts the policy's shape"
        now = self._observed(observations, returns_to_go)
        for stage, history in zip(self._stages, self._histories, strict=True):
            history.append(self._embed(stage, now))
            now[stage.layout.target] = stage.predict_last(history.window())
        for stage, history in zip(self._stages, self._histories, strict=True):
            if _waits_for(stage.layout):
                history.replace_last(self._embed(stage, now))
        self._past = [now, *self._past][: len(self._past)]
        self._timestep += 1
        actions: np.ndarray = now[Field.ACTION].float().cpu().numpy()
        return actions

    @torch.inference_mode()
    def keep(self, rows: np.ndarray) -> None:
        """See `Decoder.keep`."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self._device)
        for history in self._histories:
            history.keep(index)
        self._past = [{field: values[index] for field, values in fields.items()} for fields in self._past]

    def _observed(self, observations: np.ndarray, returns_to_go: np.ndarray) -> dict[Field, Tensor]:
        raw = {Field.STATE: observations, Field.RETURN_TO_GO: returns_to_go[:, None]}
        tensors = {
            field: torch.as_tensor(value, dtype=torch.float32, device=self._device) for field, value in raw.items()
        }
        return {field: self._policy.encode(field, value) for field, value in tensors.items()}

    def _embed(self, stage: SequenceModel, now: dict[Field, Tensor]) -> Tensor:
        """This timestep's tokens, (E, K, W); a field that is not decided yet stands as zeros, which nothing reads."""
        values = {token: self._value(token, now)[:, None] for token in stage.layout.tokens}
        rows = len(now[Field.STATE])
        timesteps = torch.full((rows, 1), self._timestep, dtype=torch.int64, device=self._device)
        return stage.embed(values, timesteps)[:, 0]

    def _value(self, token: Token, now: dict[Field, Tensor]) -> Tensor:
        if token.lag > 0:
            return self._past[token.lag - 1][token.field]
        if token.field in now:
            return now[token.field]
        state = now[Field.STATE]
        return state.new_zeros(len(state), self._policy.recipe.shape.dim(token.field))


DECODERS: Mapping[str, Callable[[SequencePolicy, int], Decoder]] = {"window": WindowDecoder}


class _History:
    """The embedded tokens of the last `length` timesteps, in a buffer of twice that length that is moved when full."""

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

    def window(self) -> Tensor:
        """(E, T, K, W), T up to `length`."""
        return self._buffer[:, max(0, self._end - self._length) : self._end]

    def keep(self, rows: Tensor) -> None:
        self._buffer = self._buffer[rows]


def _before_the_start(policy: SequencePolicy, rows: int) -> dict[Field, Tensor]:
    """The fields of a timestep before the first: zeros, encoded, as the training windows have them."""
    zeros = {
        field: torch.zeros(rows, policy.recipe.shape.dim(field), device=policy.state_mean.device) for field in Field
    }
    return {field: policy.encode(field, value) for field, value in zeros.items()}


def _waits_for(layout: Layout) -> bool:
    """Whether a token of the timestep is known only after its decision."""
    return any(token.lag == 0 for token in layout.tokens[layout.read_at + 1 :])
