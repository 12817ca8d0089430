"""How a trained policy acts: for all live episodes of a cohort at once, with its history in an object of the caller's.

Shapes: E live episodes, S observation_dim, A action_dim. A cohort moves in lockstep: one timestep for all. The modes
are the entries of `dmray.specs.decode`. They are not interchangeable, so the mode is part of what a score means (see
`state_decoder`).
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

import numpy as np

from dmray.errors import SpecError
from dmray.policies.policy import SequencePolicy
from dmray.policies.rollout_fields import RolloutFields
from dmray.specs import Decode, parse_decode


class Decoder(Protocol):
    """The state of one cohort's rollout, from its first timestep on.

    The class of a mode is called with a fresh `RolloutFields` and the mode's argument.
    """

    def decide(
        self, observations: np.ndarray, returns_to_go: np.ndarray, done_actions: np.ndarray | None = None
    ) -> np.ndarray:
        """Actions (E, A) float32 for raw observations (E, S) and raw returns-to-go (E,); moves to the next timestep.

        Policies without a return-to-go ignore it. `done_actions` (E, A): what was done at this timestep, so that
        nothing is to be decided; they go into the history and are returned. An episode may not outlast the shape's
        `max_timesteps`.
        """

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these of the current rows only, in this order; positions (E',) int."""

    def subgoals(self) -> np.ndarray | None:
        """The raw subgoals (E, S) float32 that the last decision was made for; None for methods that have none."""


def make_decoder(policy: SequencePolicy, decode: str, num_rows: int, first_timestep: int = 0) -> Decoder:
    """A fresh decoder for `num_rows` episodes; `policy` is in evaluation mode and stays as it is.

    `first_timestep`: when the episodes are not known from their start, the timestep of the first observation.

    Raises:
        SpecError: no decode mode of that name, a wrong argument, or one that does not fit the policy's context.
    """
    try:
        parsed = parse_decode(decode)
    except ValueError as unknown:
        raise SpecError(str(unknown)) from None
    if problem := parsed.problem(policy.recipe.model.context_length):
        raise SpecError(f"decode {decode}: {problem}")
    return _class_of(parsed)(RolloutFields(policy, num_rows, first_timestep), parsed.argument)


class _DecoderClass(Protocol):
    def __call__(self, fields: RolloutFields, argument: object, /) -> Decoder: ...


def check_decoder(decode: str) -> None:
    """Import what a decode mode needs to act.

    Raises:
        SpecError: there is no such mode, or its class cannot be imported.
    """
    try:
        _class_of(parse_decode(decode))
    except ValueError as unknown:
        raise SpecError(str(unknown)) from None


def _class_of(parsed: Decode) -> _DecoderClass:
    module, _, name = parsed.mode.decoder.partition(":")
    try:
        found: _DecoderClass = getattr(import_module(module, __package__), name)
    except (ImportError, AttributeError) as cause:
        raise SpecError(f"decode mode '{parsed.mode.name}': cannot import '{parsed.mode.decoder}': {cause}") from cause
    return found
