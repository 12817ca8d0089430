"""How a trained policy acts: for all live episodes of a cohort at once, with its history in an object of the caller's.

Shapes: E live episodes. A cohort moves in lockstep: one timestep for all. The modes (`window`, `stream:m`, `recurrent`)
are not interchangeable, so the mode is part of what a score means (see `state_decoder`).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dmray.errors import SpecError
from dmray.fields import Field
from dmray.policies.policy import SequencePolicy
from dmray.policies.state_decoder import StateDecoder
from dmray.policies.window_decoder import WindowDecoder
from dmray.specs import parse_decode


class Decoder(Protocol):
    """The state of one cohort's rollout, from its first timestep on."""

    def decide(self, observations: np.ndarray, returns_to_go: np.ndarray) -> np.ndarray:
        """Actions (E, A) float32 for raw observations (E, S) and raw returns-to-go (E,); moves to the next timestep.

        Policies without a return-to-go ignore it. An episode may not outlast the shape's `max_timesteps`.
        """

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these of the current rows only, in this order; positions (E',) int."""


def make_decoder(policy: SequencePolicy, decode: str, num_rows: int) -> WindowDecoder | StateDecoder:
    """A fresh decoder for `num_rows` episodes at timestep 0; `policy` is in evaluation mode and stays as it is.

    Raises:
        SpecError: no decoding mode of that name, or more streams than the context has timesteps.
    """
    try:
        mode = parse_decode(decode)
    except ValueError as unknown:
        raise SpecError(str(unknown)) from None
    if mode.name == "window":
        return WindowDecoder(policy, num_rows)
    context_length = policy.recipe.model.context_length
    if mode.streams is not None and mode.streams > context_length:
        raise SpecError(f"decode {decode}: at most context_length, {context_length}, states can take turns")
    return StateDecoder(policy, num_rows, mode.streams)


def predicted_subgoals(decoder: WindowDecoder | StateDecoder) -> np.ndarray | None:
    """The subgoals (E, S) float32, raw, that the last decision was made for; None for methods that have none."""
    fields = decoder._fields
    if Field.SUBGOAL not in fields.now:
        return None
    policy = fields.policy
    subgoals: np.ndarray = (fields.now[Field.SUBGOAL] * policy.state_std + policy.state_mean).cpu().numpy()
    return subgoals
