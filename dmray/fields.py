"""The quantities that one timestep of a trajectory has, and how a token refers to them.

The whole comparison of methods is said in these words: a layout names the tokens a timestep contributes
(`dmray.methods.layout`), the data provides the fields, the rollout fills them in.
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
    """A field as it stood `lag` timesteps ago (0: this timestep; 1: the one before)."""

    field: Field
    lag: int = 0
