from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.rollout import VectorEngine, kitchen
from dmray.rollout.envpool_engine import PoolStep
from dmray.rollout.kitchen import KitchenEngine, kitchen_subtasks
from dmray.tasks import TASKS, Task
from dmray.tasks.kitchen_elements import ELEMENTS, KITCHEN_TASKS, REACHED_WITHIN
from dmray.testing.engine_contract import EngineContract

COMPLETE, MIXED = TASKS["kitchen-complete"], TASKS["kitchen-mixed"]
NO_NOISE = {"robot_noise_ratio": 0.0, "object_noise_ratio": 0.0}
FAR = 2.0  # from every goal


class KitchenContract(EngineContract):
    def make(self, task: Task, num_episodes: int) -> VectorEngine:
        return KitchenEngine(task, num_episodes)


class TestCompleteEngine(KitchenContract):
    task = COMPLETE


class TestMixedEngine(KitchenContract):
    task = MIXED


class Scripted:
    """In the pool's place: at step t, row r shows `script[t][r]`'s elements at `gap` from their goals, others far."""

    action_dim = 9
    gap = 0.0
    script: Sequence[Sequence[tuple[str, ...]]] = ()

    def __init__(self, task: Task, env_id: str, num_episodes: int, options: Mapping[str, Any]) -> None:
        assert env_id == "FrankaKitchen-v1"
        self._count, self._step = num_episodes, 0

    def reset(self, seeds: Sequence[int]) -> Any:
        self._step = 0
        return self._shown([()] * self._count)

    def step(self, actions: np.ndarray, rows: np.ndarray) -> PoolStep:
        reached = [self.script[self._step][row] for row in rows]
        self._step += 1
        return PoolStep(self._shown(reached), np.full(len(rows), 9, np.float32), np.zeros(len(rows), dtype=bool))

    def close(self) -> None:
        pass

    def _shown(self, rows: Sequence[tuple[str, ...]]) -> Any:
        shown = np.full((len(rows), 59), FAR)
        for row, reached in zip(shown, rows, strict=True):
            for name in reached:
                element = ELEMENTS[name]
                columns = np.array(element.indices) + 9  # nine velocities of the robot stand before the objects
                row[columns] = element.goal
                row[columns[0]] += self.gap
        return {"observation": shown, "achieved_goal": {name: np.array(ELEMENTS[name].goal) for name in ELEMENTS}}


def play(
    monkeypatch: pytest.MonkeyPatch, script: Sequence[Sequence[tuple[str, ...]]], task: Task = COMPLETE, gap: float = 0
) -> list[tuple[list[float], list[bool], list[bool]]]:
    """Rewards, terminations and truncations of an engine whose pool shows `script`, all rows stepped to its end."""
    monkeypatch.setattr(Scripted, "script", script)
    monkeypatch.setattr(Scripted, "gap", gap)
    monkeypatch.setattr(kitchen, "EpisodePool", Scripted)
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
    script = [[()], [KITCHEN_TASKS["complete"]]]
    assert play(monkeypatch, script, replace(COMPLETE, horizon=2))[-1] == ([4.0], [True], [False])
    assert play(monkeypatch, [[()], [()]], replace(COMPLETE, horizon=2))[-1] == ([0.0], [False], [True])


@pytest.mark.parametrize("task", [COMPLETE, TASKS["kitchen-partial"], MIXED], ids=lambda task: task.name)
def test_only_the_tasks_own_elements_are_paid(monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    paid = {name for name in ELEMENTS if rewards_of_one(monkeypatch, (name,), task=task) == [1.0]}
    assert paid == set(KITCHEN_TASKS[task.env_id])


@pytest.mark.parametrize(("gap", "reward"), [(0.299, 1.0), (0.301, 0.0), (-0.299, 1.0), (-0.301, 0.0)])
def test_an_element_is_reached_where_it_is_seen_closer_than_point_three(
    monkeypatch: pytest.MonkeyPatch, gap: float, reward: float
) -> None:
    """What the simulator itself calls achieved (the scripted one: everything, at once) decides nothing."""
    assert rewards_of_one(monkeypatch, ("kettle",), gap=gap) == [reward]


def test_rows_are_paid_each_for_its_own_elements_and_anew_after_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "script", [[("kettle",), ()], [("kettle",), ("kettle",)]])
    monkeypatch.setattr(kitchen, "EpisodePool", Scripted)
    engine = KitchenEngine(COMPLETE, 2)
    for _ in range(2):
        engine.reset([0, 1])
        assert [engine.step(np.zeros((2, 9)), np.array([1, 0])).rewards.tolist() for _ in range(2)] == [[0, 1], [1, 0]]


@pytest.mark.parametrize("task", [COMPLETE, MIXED], ids=lambda task: task.name)
def test_without_noise_an_episode_is_that_of_gymnasium_robotics_bit_for_bit(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both begin at the same state; with noise they would not agree, for it is other draws and steers the arm."""
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import KitchenEnv

    monkeypatch.setattr(kitchen, "_NOISE", NO_NOISE)
    reference: Any = KitchenEnv(tasks_to_complete=list(KITCHEN_TASKS[task.env_id]), **NO_NOISE)
    goal = np.zeros(30)
    for name, target in reference.goal.items():
        goal[list(ELEMENTS[name].indices)] = target

    def sixty(shown: Any) -> np.ndarray:
        numbers = shown["observation"]
        return np.concatenate([numbers[:9], numbers[18:39], goal]).astype(np.float32)

    with closing(KitchenEngine(task, 1)) as engine, closing(reference):
        np.testing.assert_array_equal(engine.reset([3])[0], sixty(reference.reset(seed=3)[0]))
        rng = np.random.default_rng(1)
        for _ in range(40):
            action = rng.uniform(-1, 1, 9)
            step = engine.step(action[None], np.array([0]))
            shown, reward, terminated, *_ = reference.step(action)
            np.testing.assert_array_equal(step.observations[0], sixty(shown))
            assert (step.rewards[0], step.terminated[0]) == (reward, terminated)


def test_sensors_of_the_robot_err_by_a_hundredth_and_those_of_objects_by_no_more() -> None:
    rows = 12
    with closing(KitchenEngine(COMPLETE, rows)) as engine:
        first = engine.reset(range(rows)).astype(np.float64)
    robot, objects = first[:, :9], first[:, 9:30]
    assert 0.018 < np.ptp(robot, axis=0).max() <= 0.02  # uniform in +-.01, about one start
    assert (np.ptp(robot, axis=0) > 0.01).all()
    assert (np.ptp(objects, axis=0) > 0).all()
    assert np.ptp(objects, axis=0).max() <= 0.02


def test_a_random_policy_reaches_nothing_until_the_horizon() -> None:
    with closing(KitchenEngine(COMPLETE, 2)) as engine:
        engine.reset([0, 1])
        rng, live = np.random.default_rng(0), np.arange(2)
        steps = [engine.step(rng.uniform(-1, 1, (2, 9)), live) for _ in range(280)]
    assert sum(step.rewards.sum() for step in steps) == 2 * COMPLETE.reference.minimum
    assert [step.truncated.all() for step in steps] == [False] * 279 + [True]


def test_elements_are_those_of_gymnasium_robotics() -> None:
    from gymnasium_robotics.envs.franka_kitchen import kitchen_env

    assert kitchen_env.BONUS_THRESH == REACHED_WITHIN
    assert {name: list(element.indices) for name, element in ELEMENTS.items()} == {
        name: indices.tolist() for name, indices in kitchen_env.OBS_ELEMENT_INDICES.items()
    }
    assert {name: list(element.goal) for name, element in ELEMENTS.items()} == {
        name: goal.tolist() for name, goal in kitchen_env.OBS_ELEMENT_GOALS.items()
    }


def test_subtasks_find_their_elements_in_the_tasks_observation() -> None:
    with closing(KitchenEngine(MIXED, 1)) as engine:
        goal = engine.reset([0])[0, 30:]
    expected = np.zeros(30, np.float32)
    for subtask in kitchen_subtasks("mixed"):
        expected[list(subtask.columns)] = subtask.goal
    np.testing.assert_array_equal(goal, expected)
    assert [subtask.name for subtask in kitchen_subtasks("mixed")] == list(KITCHEN_TASKS["mixed"])


def test_an_unknown_kitchen_is_refused_with_the_nearest() -> None:
    with pytest.raises(EngineError, match="unknown kitchen 'compleet', did you mean 'complete'"):
        KitchenEngine(replace(COMPLETE, env_id="compleet"), 1)
