"""Training windows, drawn and gathered on the training device without a Python step per row.

Shapes: B windows, T context_length timesteps, N transitions.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dmray.datasets.episodes import Episodes
from dmray.datasets.subgoals import subgoal_rows
from dmray.fields import Field, Token


class Windows(NamedTuple):
    """A batch. Real timesteps come first, padding (zeros, not `valid`) is on the right."""

    tokens: dict[Token, Tensor]  # (B, T, dim) float32 each, raw units
    timesteps: Tensor  # (B, T) int64, counted from the episode's start
    valid: Tensor  # (B, T) bool


class Draw(NamedTuple):
    """The random part of a batch: an episode for each window, and where in it the window is, uniform in [0, 1)."""

    episode: Tensor  # (B,) int64
    chance: Tensor  # (B,) float64


class WindowSampler:
    """Draws windows of `episodes`: an episode, uniformly or by its length, then one of its steps, uniformly.

    `anchor` "last": a window holds the `context_length` steps up to that step, or all steps up to it if there are fewer
    (the authors' code). "first": those from that step on, or all to the end of the episode (Chen et al.). A token with
    a lag is the field's value that many steps earlier in the episode, zero before its start. The data set is copied to
    `device` once.
    """

    def __init__(
        self,
        episodes: Episodes,
        tokens: Collection[Token],
        *,
        context_length: int,
        batch_size: int,
        episode_weighting: Literal["uniform", "length"] = "uniform",
        anchor: Literal["last", "first"] = "last",
        device: str | torch.device = "cpu",
    ) -> None:
        self._tokens = tuple(tokens)
        self._batch_size, self._weighting, self._anchor = batch_size, episode_weighting, anchor
        self._device = torch.device(device)
        self._fields = {field: self._upload(_field(episodes, field)) for field in {token.field for token in tokens}}
        self._subgoal_rows = self._upload(subgoal_rows(episodes)) if Field.SUBGOAL in self._fields else None
        self._starts, self._lengths = self._upload(episodes.starts[:-1]), self._upload(episodes.lengths)
        self._ends, self._num_rows = self._upload(episodes.starts[1:]), int(episodes.starts[-1])
        self._steps = torch.arange(context_length, device=self._device)

    def sample(self, generator: torch.Generator) -> Windows:
        """A batch; `generator` is on the sampler's device and the only source of randomness.

        Does not wait for the device.
        """
        return self.cut(self.draw(generator))

    def draw(self, generator: torch.Generator) -> Draw:
        """The draws for a batch. All random numbers come from here."""
        episode = self._draw_episodes(generator)
        return Draw(
            episode, torch.rand(self._batch_size, generator=generator, device=self._device, dtype=torch.float64)
        )

    def cut(self, draw: Draw) -> Windows:
        """The windows of these draws, of one batch or of several after one another."""
        episode, chance = draw
        length = self._lengths[episode]
        drawn = (chance * length).long()  # uniform in 0 ... length - 1
        if self._anchor == "first":
            first, end = drawn, torch.minimum(drawn + len(self._steps), length)
        else:
            first, end = (drawn + 1 - len(self._steps)).clamp(min=0), drawn + 1
        return self.between(episode, first, end)

    def between(self, episode: Tensor, first: Tensor, end: Tensor) -> Windows:
        """The windows of these episodes from step `first` to the one before `end`, counted from the start; (B,) each.

        A window has at least one step and at most `context_length`.
        """
        timesteps = first[:, None] + self._steps
        valid = timesteps < end[:, None]
        timesteps = timesteps * valid
        rows = self._starts[episode][:, None] + timesteps
        return Windows({token: self._gather(token, rows, timesteps, valid) for token in self._tokens}, timesteps, valid)

    def _draw_episodes(self, generator: torch.Generator) -> Tensor:
        size = (self._batch_size,)
        if self._weighting == "uniform":
            return torch.randint(len(self._lengths), size, generator=generator, device=self._device)
        row = torch.randint(self._num_rows, size, generator=generator, device=self._device)
        return torch.searchsorted(self._ends, row, right=True)

    def _gather(self, token: Token, rows: Tensor, timesteps: Tensor, valid: Tensor) -> Tensor:
        real = valid & (timesteps >= token.lag)
        rows = (rows - token.lag).clamp(min=0)
        if token.field is Field.SUBGOAL:
            assert self._subgoal_rows is not None
            rows = self._subgoal_rows[rows]
        return self._fields[token.field][rows] * real[:, :, None]

    def _upload(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _field(episodes: Episodes, field: Field) -> np.ndarray:
    """The field's raw values, (N, dim) float32; a subgoal is read from the states."""
    match field:
        case Field.RETURN_TO_GO:
            return episodes.returns_to_go()[:, None]
        case Field.ACTION:
            return episodes.actions
        case Field.STATE | Field.SUBGOAL:
            return episodes.observations
