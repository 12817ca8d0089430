"""The five methods of arXiv 2405.07943 as a table: backbone, and stages that each fill one field of the timestep.

Source of the rows: the authors' published code. Its action token is the action one step earlier (`paper`); Chen et al.
(arXiv 2106.01345) feed the timestep's own action, after the token that it is predicted from (`dt`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dmray.fields import Field, Token
from dmray.policies.layout import Layout
from dmray.specs import MethodName

ActionInput = Literal["paper", "dt"]
BackboneName = Literal["transformer", "mamba"]

_OBSERVED = (Field.STATE, Field.RETURN_TO_GO)

R, S, A, G = Token(Field.RETURN_TO_GO), Token(Field.STATE), Token(Field.ACTION), Token(Field.SUBGOAL)
A1, G1 = Token(Field.ACTION, lag=1), Token(Field.SUBGOAL, lag=1)


@dataclass(frozen=True)
class Algorithm:
    """A backbone (one network per stage) and the stages in the order in which a timestep's fields are decided.

    Raises:
        ValueError: a stage would see a field of its timestep before a stage has filled it, or none fills the action.
    """

    backbone: BackboneName
    stages: tuple[Layout, ...]

    def __post_init__(self) -> None:
        known = set(_OBSERVED)
        for stage in self.stages:
            for token in stage.visible:
                if token.lag == 0 and token.field not in known:
                    raise ValueError(f"{stage.target} needs {token.field} of the same timestep, which is not known yet")
            known.add(stage.target)
        if Field.ACTION not in known:
            raise ValueError("no stage predicts the action")


ALGORITHMS: Mapping[MethodName, Algorithm] = {
    "dt": Algorithm("transformer", (Layout((R, S, A1), Field.ACTION, read_at=1),)),
    "dm": Algorithm("mamba", (Layout((S, A1), Field.ACTION, read_at=0),)),
    "dm+r": Algorithm("mamba", (Layout((R, S, A1), Field.ACTION, read_at=1),)),
    "hdt": Algorithm(
        "transformer",
        (
            Layout((S, G1), Field.SUBGOAL, read_at=1, squash=False),
            Layout((G, S, A1), Field.ACTION, read_at=1),
        ),
    ),
    "hdm": Algorithm(
        "mamba",
        (
            Layout((G1, S), Field.SUBGOAL, read_at=1),
            Layout((G, S, A1), Field.ACTION, read_at=1),
        ),
    ),
}


def algorithm(method: MethodName, action_input: ActionInput) -> Algorithm:
    """The method's row, its action token as published (`paper`: one step earlier) or as Chen et al.'s (`dt`)."""
    row = ALGORITHMS[method]
    if action_input == "paper":
        return row
    return replace(row, stages=tuple(_with_own_action(stage) for stage in row.stages))


def _with_own_action(stage: Layout) -> Layout:
    return replace(stage, tokens=tuple(A if token == A1 else token for token in stage.tokens))
