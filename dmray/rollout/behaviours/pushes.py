"""A scripted arm that pushes objects to their goals: the way of its hand for each, found once and by hand.

* `expert`: every element of the task that there is a script for, in an order that each episode draws.
* `play`: some of all scripts, from one to all, in an order that each episode draws; not each is paid for.

The joint positions of each point follow by inverse kinematics. The arm drives to them one after the other, back to its
first position after each element, and stays there in the end. Each action has Gaussian noise of `PUSH_NOISE`. An
episode follows from its seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

from dmray.datasets import RecordedTransitions
from dmray.errors import EngineError
from dmray.rollout.cohorts import Cohort, EvaluationRequest, episode_seed
from dmray.rollout.recording import record_episodes
from dmray.specs import Generation
from dmray.tasks import Task

PUSH_NOISE = 0.1  # standard deviation, in units of the action limit
# Points (x, y, z) of the hand, in metres. There is none for the microwave's door, which must be pulled.
WAYS: Mapping[str, tuple[tuple[float, float, float], ...]] = {
    "kettle": ((-0.27, 0.15, 1.9), (-0.27, 0.15, 1.72), (-0.27, 0.3, 1.72), (-0.27, 0.5, 1.72)),
    "light switch": ((-0.25, 0.5, 2.31), (-0.25, 0.62, 2.31), (-0.55, 0.63, 2.31)),
    "slide cabinet": ((-0.3, 0.45, 2.6), (-0.2, 0.6, 2.6), (0.1, 0.6, 2.6), (0.25, 0.6, 2.6)),
}
_HAND = "end_effector"
_ARM = 7  # joints that move the hand; the two after them are its fingers
_NEAR, _PATIENCE = 0.1, 20  # a point is reached within so much of every joint, or given up after so many steps
_AT_ONCE = 50


@dataclass(frozen=True)
class Arm:
    """`start`: the positions of all joints of `model`; `low`, `high`: limits of the arm's and fingers' joints (J,).

    `reach`: how far an action of 1 moves a joint within one step.
    """

    model: mujoco.MjModel
    start: np.ndarray
    low: np.ndarray
    high: np.ndarray
    reach: float

    def towards(self, point: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Joint positions (J,) with closed fingers that bring the hand to `point`, near `first` (J,)."""
        data, jacobian = mujoco.MjData(self.model), np.zeros((3, self.model.nv))
        hand = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, _HAND)
        limits = self.model.jnt_range[:_ARM]
        low, high = np.maximum(self.low[:_ARM], limits[:, 0]), np.minimum(self.high[:_ARM], limits[:, 1])
        joints, rest = first.copy(), self.start[:_ARM]
        for _ in range(300):
            data.qpos[:], data.qpos[: len(joints)] = self.start, joints
            mujoco.mj_kinematics(self.model, data)
            mujoco.mj_comPos(self.model, data)
            mujoco.mj_jacSite(self.model, data, jacobian, None, hand)
            moves = jacobian[:, :_ARM]
            inverse = moves.T @ np.linalg.inv(moves @ moves.T + 1e-4 * np.eye(3))
            free = (np.eye(_ARM) - inverse @ moves) @ (0.02 * (rest - joints[:_ARM]))  # what does not move the hand
            change = np.clip(inverse @ (point - data.site_xpos[hand]) + free, -0.1, 0.1)
            joints[:_ARM] = np.clip(joints[:_ARM] + change, low, high)
        joints[_ARM:] = 0.0
        return joints


class Pushes:
    """A `Decoder`: each row's arm drives through its own joint positions, (T, J) for one row."""

    def __init__(self, ways: list[np.ndarray], reach: float, rngs: list[np.random.Generator]) -> None:
        self._ways, self._reach, self._rngs = ways, reach, rngs
        self._at, self._waited = np.zeros(len(ways), dtype=np.int64), np.zeros(len(ways), dtype=np.int64)

    def decide(
        self, observations: np.ndarray, returns_to_go: np.ndarray, known_actions: np.ndarray | None = None
    ) -> np.ndarray:
        """See `Decoder.decide`."""
        shown = observations[:, : self._ways[0].shape[1]].astype(np.float64)
        gaps = self._targets() - shown
        self._waited += 1
        over = (np.abs(gaps[:, :_ARM]).max(axis=1) < _NEAR) | (self._waited > _PATIENCE)
        self._at += over
        self._waited[over] = 0
        wanted = np.clip((self._targets() - shown) / self._reach, -1.0, 1.0)
        noise = np.stack([rng.standard_normal(wanted.shape[1]) for rng in self._rngs])
        actions: np.ndarray = np.clip(wanted + PUSH_NOISE * noise, -1.0, 1.0).astype(np.float32)
        return actions

    def keep(self, rows: np.ndarray) -> None:
        """See `Decoder.keep`."""
        self._ways, self._rngs = ([each[row] for row in rows.tolist()] for each in (self._ways, self._rngs))
        self._at, self._waited = self._at[rows], self._waited[rows]

    def subgoals(self) -> None:
        """A script has none."""

    def _targets(self) -> np.ndarray:
        return np.stack([way[min(at, len(way) - 1)] for way, at in zip(self._ways, self._at.tolist(), strict=True)])


def record_pushes(task: Task, generation: Generation, arm: Arm) -> RecordedTransitions:
    """Whole episodes of the behaviour that `generation` names (see above); decided by its seed, bit for bit.

    Raises:
        EngineError: there is no script for any element of `task`.
    """
    paid = [element.name for element in task.subtasks if element.name in WAYS]
    if not paid:
        raise EngineError(f"{task.name}: there is no script for its elements; there are {', '.join(WAYS)}")
    ways = _joint_ways(arm)
    expert = generation.behaviour == "expert"
    names = paid if expert else list(WAYS)
    request = EvaluationRequest(task, 0, generation.seed, "", (None,), _AT_ONCE)

    def scripts(cohort: Cohort) -> Pushes:
        rngs = [np.random.default_rng([episode_seed(request.seed, row.index), 1]) for row in cohort.rows]
        counts = [len(names) if expert else int(rng.integers(len(names))) + 1 for rng in rngs]
        orders = [rng.permutation(len(names))[:count] for rng, count in zip(rngs, counts, strict=True)]
        joints = [np.concatenate([ways[names[each]] for each in order]) for order in orders]
        return Pushes(joints, arm.reach, rngs)

    return record_episodes(scripts, request, generation.transitions)


def _joint_ways(arm: Arm) -> dict[str, np.ndarray]:
    """The joint positions (T, J) of each way, and then the arm's first position."""
    first = arm.start[: len(arm.low)]
    found = {}
    for name, points in WAYS.items():
        joints = [first]
        for point in points:
            joints.append(arm.towards(np.array(point), joints[-1]))
        found[name] = np.stack([*joints[1:], first])
    return found
