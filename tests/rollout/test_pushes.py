"""The script that pushes objects in the kitchen, and what is recorded with it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import mujoco
import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.rollout import RecordedTransitions, record
from dmray.rollout.behaviours import PUSH_NOISE, WAYS, Arm, record_pushes
from dmray.rollout.behaviours.pushes import Pushes
from dmray.rollout.simulators import kitchen
from dmray.specs import Generation
from dmray.tasks import TASKS

COMPLETE, MIXED = TASKS["kitchen-complete"], TASKS["kitchen-mixed"]


@cache
def arm() -> Arm:
    start = kitchen._START.copy()
    start[:9] = start[:9].clip(kitchen._LOW, kitchen._HIGH)
    return Arm(kitchen.kitchen_model(COMPLETE), start, kitchen._LOW, kitchen._HIGH, reach=0.16)


def recorded(behaviour: str, horizon: int = 25, transitions: int = 50, seed: int = 0) -> RecordedTransitions:
    task = replace(COMPLETE, horizon=horizon)
    return record(task, Generation(behaviour=behaviour, transitions=transitions, seed=seed))


def test_the_expert_brings_three_of_four_elements_to_their_goals() -> None:
    data = recorded("expert", horizon=170, transitions=340)
    assert data.rewards.reshape(2, 170).sum(axis=1).tolist() == [3.0, 3.0]
    assert np.flatnonzero(data.timeouts).tolist() == [169, 339]
    assert not data.terminals.any()


def test_the_seed_decides_every_value_and_play_is_not_the_expert() -> None:
    one, again, other, play = (recorded("expert"), recorded("expert"), recorded("expert", seed=1), recorded("play"))
    np.testing.assert_array_equal(one.actions, again.actions)
    np.testing.assert_array_equal(one.observations, again.observations)
    assert (one.actions != other.actions).any()
    assert (one.actions != play.actions).any()


@pytest.mark.parametrize("name", sorted(WAYS))
def test_the_joints_of_a_point_bring_the_hand_there(name: str) -> None:
    point = np.array(WAYS[name][0])
    joints = arm().towards(point, arm().start[:9])
    data = mujoco.MjData(arm().model)
    data.qpos[:], data.qpos[:9] = arm().start, joints
    mujoco.mj_kinematics(arm().model, data)
    assert np.linalg.norm(data.site("end_effector").xpos - point) < 0.01
    assert (joints >= kitchen._LOW).all()
    assert (joints <= kitchen._HIGH).all()


def test_a_script_waits_for_each_point_and_gives_up_one_that_it_does_not_reach() -> None:
    way = np.array([[1.0] * 9, [-1.0] * 9])
    script = Pushes([way, way[::-1]], 0.16, [np.random.default_rng(row) for row in range(2)])
    far, there = np.zeros((2, 9)), np.array([[0.95] * 9, [0.0] * 9])
    assert np.sign(script.decide(far, np.zeros(2))).tolist() == [[1.0] * 9, [-1.0] * 9]
    assert np.sign(script.decide(there, np.zeros(2))).tolist() == [[-1.0] * 9, [-1.0] * 9]
    script.keep(np.array([1]))
    signs = [float(np.sign(script.decide(np.zeros((1, 9)), np.zeros(1)))[0, 0]) for _ in range(25)]
    assert signs == [-1.0] * 18 + [1.0] * 7


def test_actions_have_the_documented_noise() -> None:
    rows = 2000
    script = Pushes([np.zeros((1, 9))] * rows, 0.16, [np.random.default_rng(row) for row in range(rows)])
    assert script.decide(np.zeros((rows, 60)), np.zeros(rows)).std() == pytest.approx(PUSH_NOISE, rel=0.05)


def test_a_task_without_an_element_that_has_a_script_is_refused() -> None:
    task = replace(MIXED, subtasks=tuple(goal for goal in MIXED.subtasks if goal.name not in WAYS))
    with pytest.raises(EngineError, match="there is no script for its elements; there are kettle, light switch, slide"):
        record_pushes(task, Generation(), arm())
