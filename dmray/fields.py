"""The fields of a timestep (return-to-go, state, action, subgoal), and tokens, which refer to fields.

A method's layout lists the tokens of a timestep (`dmray.methods.layout`). In training the data set provides the
fields; in an evaluation the rollout does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Field(StrEnum):
    """One quantity per timestep. Sizes: return-to-go 1, state and subgoal `observation_dim`, action `action_dim`."""

    RETURN_TO_GO = "return_to_go"
    STATE = "state"
    ACTION = "action"
    SUBGOAL = "subgoal"


@dataclass(frozen=True)
class Token:
    """The value of a field `lag` timesteps ago (0: this timestep; 1: the previous one)."""

    field: Field
    lag: int = 0
