from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.rollout import VectorEngine
from dmray.rollout.simulators import kitchen
from dmray.rollout.simulators.kitchen import KitchenEngine
from dmray.tasks import TASKS, Task
from dmray.tasks.families.kitchen import ELEMENTS
from dmray.testing.engine_contract import EngineContract

COMPLETE, MIXED = TASKS["kitchen-complete"], TASKS["kitchen-mixed"]
FAR = 2.0  # from every goal


def elements_of(task: Task) -> list[str]:
    return [subtask.name for subtask in task.subtasks]


class KitchenContract(EngineContract):
    def make(self, task: Task, num_episodes: int) -> VectorEngine:
        return KitchenEngine(task, num_episodes)


class TestCompleteEngine(KitchenContract):
    task = COMPLETE


class TestMixedEngine(KitchenContract):
    task = MIXED


class Scripted:
    """In the place of the physics: at step t, row r has `script[t][r]`'s elements at `gap` from their goals."""

    gap = 0.0
    script: Sequence[Sequence[tuple[str, ...]]] = ()

    def __init__(self, model: Any, count: int) -> None:
        self.states = np.full((count, model.nq + model.nv), FAR)
        self._step = 0

    def place(self, states: np.ndarray) -> None:
        self.states[:], self._step = FAR, 0

    def step(self, targets: np.ndarray, rows: np.ndarray, substeps: int) -> None:
        self.states[rows] = FAR
        for row in rows:
            for name in self.script[self._step][row]:
                element = ELEMENTS[name]
                self.states[row, list(element.columns)] = element.goal
                self.states[row, element.columns[0]] += self.gap
        self._step += 1


def scripted(monkeypatch: pytest.MonkeyPatch, script: Sequence[Sequence[tuple[str, ...]]], gap: float = 0) -> None:
    monkeypatch.setattr(Scripted, "script", script)
    monkeypatch.setattr(Scripted, "gap", gap)
    monkeypatch.setattr(kitchen, "MujocoBatch", Scripted)
    monkeypatch.setattr(kitchen, "_NOISE", 0.0)


def play(
    monkeypatch: pytest.MonkeyPatch, script: Sequence[Sequence[tuple[str, ...]]], task: Task = COMPLETE, gap: float = 0
) -> list[tuple[list[float], list[bool], list[bool]]]:
    """Rewards, terminations and truncations of an engine whose physics are `script`, all rows stepped to its end."""
    scripted(monkeypatch, script, gap)
    rows = len(script[0])
    engine = KitchenEngine(task, rows)
    engine.reset(range(rows))
    steps = [engine.step(np.zeros((rows, 9), np.float32), np.arange(rows)) for _ in script]
    return [(step.rewards.tolist(), step.terminated.tolist(), step.truncated.tolist()) for step in steps]


def rewards_of_one(monkeypatch: pytest.MonkeyPatch, *shown: tuple[str, ...], **options: Any) -> list[float]:
    return [rewards[0] for rewards, *_ in play(monkeypatch, [[reached] for reached in shown], **options)]


def test_an_element_is_paid_once_an_episode_even_when_it_is_left_and_reached_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = ("microwave",)
    assert rewards_of_one(monkeypatch, (), there, there, (), there) == [0, 1, 0, 0, 0]


def test_each_element_is_paid_and_two_at_once_are_paid_both(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rewards_of_one(monkeypatch, ("kettle",), ("microwave", "light switch")) == [1, 2]


def test_all_four_reached_at_whatever_times_end_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [[("microwave",)], [("kettle",)], [("light switch",)], [("slide cabinet",)]]
    assert play(monkeypatch, script) == [
        ([1.0], [False], [False]),
        ([1.0], [False], [False]),
        ([1.0], [False], [False]),
        ([1.0], [True], [False]),
    ]


def test_the_fourth_element_at_the_horizon_is_a_termination(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [[()], [tuple(elements_of(COMPLETE))]]
    assert play(monkeypatch, script, replace(COMPLETE, horizon=2))[-1] == ([4.0], [True], [False])
    assert play(monkeypatch, [[()], [()]], replace(COMPLETE, horizon=2))[-1] == ([0.0], [False], [True])


@pytest.mark.parametrize("task", [COMPLETE, TASKS["kitchen-partial"], MIXED], ids=lambda task: task.name)
def test_only_the_tasks_own_elements_are_paid(monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    paid = {name for name in ELEMENTS if rewards_of_one(monkeypatch, (name,), task=task) == [1.0]}
    assert paid == set(elements_of(task))


@pytest.mark.parametrize(("gap", "reward"), [(0.299, 1.0), (0.301, 0.0), (-0.299, 1.0), (-0.301, 0.0)])
def test_an_element_is_reached_where_it_is_seen_closer_than_point_three(
    monkeypatch: pytest.MonkeyPatch, gap: float, reward: float
) -> None:
    assert rewards_of_one(monkeypatch, ("kettle",), gap=gap) == [reward]


def test_rows_are_paid_each_for_its_own_elements_and_anew_after_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [[("kettle",), ()], [("kettle",), ("kettle",)]])
    engine = KitchenEngine(COMPLETE, 2)
    for _ in range(2):
        engine.reset([0, 1])
        assert [engine.step(np.zeros((2, 9)), np.array([1, 0])).rewards.tolist() for _ in range(2)] == [[0, 1], [1, 0]]


@pytest.mark.parametrize(("element", "reward"), [("microwave", 1.0), ("hinge cabinet", 0.0)])
def test_the_simulators_own_state_is_what_is_paid_for(element: str, reward: float) -> None:
    with closing(KitchenEngine(COMPLETE, 1)) as engine:
        engine.reset([0])
        state = engine._kitchens.states.copy()
        state[0, list(ELEMENTS[element].columns)] = ELEMENTS[element].goal
        engine._kitchens.place(state)
        steps = [engine.step(np.zeros((1, 9)), np.array([0])) for _ in range(3)]
    assert [step.rewards[0] for step in steps] == [reward, 0.0, 0.0]


@pytest.mark.parametrize("task", [COMPLETE, MIXED], ids=lambda task: task.name)
def test_without_noise_an_episode_is_that_of_gymnasium_robotics_bit_for_bit(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same state on; D4RL starts with the fingers within their limits, gymnasium-robotics does not."""
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import KitchenEnv

    monkeypatch.setattr(kitchen, "_NOISE", 0.0)
    reference: Any = KitchenEnv(tasks_to_complete=elements_of(task), robot_noise_ratio=0.0, object_noise_ratio=0.0)
    reference.reset(seed=3)
    robot = reference.robot_env
    np.testing.assert_array_equal(robot.init_qpos, kitchen._START)
    with closing(KitchenEngine(task, 1)) as engine, closing(reference):
        first = engine.reset([3])[0]
        robot.data.qacc_warmstart[:] = 0
        start = engine._kitchens.states[0]
        robot.set_state(start[:30], start[30:])
        robot._last_robot_qpos = start[:9].copy()
        np.testing.assert_array_equal(first[:30], start[:30].astype(np.float32))
        rng = np.random.default_rng(1)
        for _ in range(40):
            action = rng.uniform(-1.2, 1.2, 9)
            step = engine.step(action[None], np.array([0]))
            shown, reward, terminated, *_ = reference.step(action)
            numbers = shown["observation"]
            expected = np.concatenate([numbers[:9], numbers[18:39], first[30:]]).astype(np.float32)
            np.testing.assert_array_equal(step.observations[0], expected)
            assert (step.rewards[0], step.terminated[0]) == (reward, terminated)


def test_the_arm_is_driven_from_where_its_sensors_say_it_is() -> None:
    with closing(KitchenEngine(COMPLETE, 1)) as noisy:
        noisy.reset([0])
        before = noisy._kitchens.states[0, :7].copy()
        seen = before + 0.1  # a sensor that errs greatly
        for _ in range(3):
            noisy._shown[0, :9] = np.concatenate([seen, [0.04, 0.04]])
            noisy.step(np.zeros((1, 9)), np.array([0]))
        after = noisy._kitchens.states[0, :7]
    assert np.abs(after - seen).sum() < 0.5 * np.abs(before - seen).sum()


def test_sensors_err_by_a_tenth_of_d4rls_amplitudes_each_joint_by_its_own() -> None:
    rows = 40
    with closing(KitchenEngine(COMPLETE, rows)) as engine:
        first = engine.reset(range(rows)).astype(np.float64)[:, :30]
    amplitude = np.full(30, 0.1)
    amplitude[[9, 10, *range(17, 20), *range(23, 26), 29]] = 0.005
    amplitude[11:17] = 0.0005
    spread = np.ptp(first, axis=0)  # uniform in plus or minus a tenth of it, about one start
    assert (spread <= 0.2 * amplitude + 1e-6).all()
    assert (spread > 0.15 * amplitude).all()


def test_a_random_policy_reaches_nothing_until_the_horizon() -> None:
    with closing(KitchenEngine(COMPLETE, 2)) as engine:
        engine.reset([0, 1])
        rng, live = np.random.default_rng(0), np.arange(2)
        steps = [engine.step(rng.uniform(-1, 1, (2, 9)), live) for _ in range(280)]
    assert sum(step.rewards.sum() for step in steps) == 2 * COMPLETE.reference.minimum
    assert [step.truncated.all() for step in steps] == [False] * 279 + [True]


def test_elements_are_those_of_gymnasium_robotics() -> None:
    from gymnasium_robotics.envs.franka_kitchen import kitchen_env

    assert {element.within for element in ELEMENTS.values()} == {kitchen_env.BONUS_THRESH}
    assert {name: list(element.columns) for name, element in ELEMENTS.items()} == {
        name: indices.tolist() for name, indices in kitchen_env.OBS_ELEMENT_INDICES.items()
    }
    assert {name: list(element.goal) for name, element in ELEMENTS.items()} == {
        name: goal.tolist() for name, goal in kitchen_env.OBS_ELEMENT_GOALS.items()
    }


def test_subtasks_find_their_elements_in_the_tasks_observation() -> None:
    with closing(KitchenEngine(MIXED, 1)) as engine:
        goal = engine.reset([0])[0, 30:]
    expected = np.zeros(30, np.float32)
    for subtask in MIXED.subtasks:
        expected[list(subtask.columns)] = subtask.goal
    np.testing.assert_array_equal(goal, expected)
    assert elements_of(MIXED) == ["microwave", "kettle", "bottom burner", "light switch"]


def test_a_kitchen_that_pays_for_nothing_is_refused() -> None:
    with pytest.raises(EngineError, match="kitchen-complete: a kitchen task needs subtasks"):
        KitchenEngine(replace(COMPLETE, subtasks=()), 1)
