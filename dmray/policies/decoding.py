"""Acting with a trained policy in all live episodes of a cohort at once. The caller owns the decoder with the history.

Shapes: E live episodes, S observation_dim, A action_dim. All episodes of a cohort are at the same timestep. The decode
modes are the entries of `dmray.specs.decode`. Different modes give different actions in episodes that are longer than
the context (see `state_decoder`), so scores of different modes are not compared.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

import numpy as np

from dmray.errors import SpecError
from dmray.policies.policy import SequencePolicy
from dmray.policies.rollout_fields import RolloutFields, SubgoalSource
from dmray.registry import short_repr
from dmray.specs import Decode, parse_decode


class Decoder(Protocol):
    """The state of one cohort's rollout. The class of a mode is called with `RolloutFields` and the mode's argument."""

    def decide(
        self, observations: np.ndarray, returns_to_go: np.ndarray, known_actions: np.ndarray | None = None
    ) -> np.ndarray:
        """The actions (E, A) float32 for raw observations (E, S) and raw returns-to-go (E,). Advances one timestep.

        Policies without a return-to-go ignore it. `known_actions` (E, A): the actions that were taken at this timestep,
        if they are known already. They are added to the history and returned. An episode must not be longer than
        `PolicyShape.max_timesteps`.
        """

    def keep(self, rows: np.ndarray) -> None:
        """Continue with these rows only, in this order; (E',) int positions among the current rows."""

    def subgoals(self) -> np.ndarray | None:
        """The raw states (E, S) float32 that the last call of `decide` had as subgoals; None for methods without."""


def make_decoder(
    policy: SequencePolicy,
    decode: str,
    num_rows: int,
    first_timestep: int | np.ndarray = 0,
    source: SubgoalSource | None = None,
) -> Decoder:
    """Make a decoder for `num_rows` episodes. `policy` must be in evaluation mode and is not changed.

    `first_timestep`: the timestep of the first observation, if the episodes are not known from their start; one for all
    or (E,) int64. `source`: gives the subgoals in place of the policy's own predictions.

    Raises:
        SpecError: there is no such decode mode, its argument is invalid or does not fit the policy's context length, or
            there is a `source` for a method without subgoals.
    """
    if source is not None and not policy.method.predicts_subgoals:
        raise SpecError(f"method '{policy.recipe.method}' has no subgoals, so it cannot be given any")
    if not isinstance(decode, str):
        raise SpecError(f"decode {short_repr(decode)}: must be text, for example window")
    try:
        parsed = parse_decode(decode)
    except ValueError as unknown:
        raise SpecError(str(unknown)) from None
    if problem := parsed.problem(policy.recipe.model.context_length):
        raise SpecError(f"decode {decode}: {problem}")
    return _class_of(parsed)(RolloutFields(policy, num_rows, first_timestep, source), parsed.argument)


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
