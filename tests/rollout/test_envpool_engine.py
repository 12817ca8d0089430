from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.rollout import VectorEngine
from dmray.rollout.simulators.envpool import EnvpoolEngine, EpisodePool
from dmray.tasks import TASKS, Task
from dmray.testing.engine_contract import EngineContract

LOCOMOTION = [prefix + name for prefix in ("", "minari-") for name in ("ant", "halfcheetah", "hopper", "walker2d")]
HIDDEN = {"ant": 2}  # x and y; the others leave out x alone
WITH_HIDDEN = {"exclude_current_positions_from_observation": False}


class EnvpoolContract(EngineContract):
    def make(self, task: Task, num_episodes: int) -> VectorEngine:
        return EnvpoolEngine(task, num_episodes)


class TestHopperEngine(EnvpoolContract):
    task = TASKS["hopper"]


class TestHalfCheetahEngine(EnvpoolContract):
    task = TASKS["halfcheetah"]


class TestWalker2dEngine(EnvpoolContract):
    task = TASKS["walker2d"]


class TestAntEngine(EnvpoolContract):
    task = TASKS["ant"]


class TestAntV5Engine(EnvpoolContract):
    task = TASKS["minari-ant"]


def placed_reference(task: Task, shown: np.ndarray) -> Any:
    """gymnasium's environment in the state that the full observation `shown` begins with, and no warm start."""
    bare: Any = gymnasium.make(gymnasium.spec(task.env_id), disable_env_checker=True, **WITH_HIDDEN).unwrapped
    bare.reset(seed=0)
    positions = bare.model.nq
    bare.data.qacc_warmstart[:] = 0
    bare.set_state(shown[:positions], shown[positions : positions + bare.model.nv])
    return bare


@pytest.mark.parametrize("name", LOCOMOTION)
def test_an_episode_is_gymnasiums_bit_for_bit_from_the_same_state_on(name: str) -> None:
    """In float64 before the engine rounds, rewards as envpool's float32; no tolerance."""
    task, seeds, compared, ends = TASKS[name], range(3, 11), 0, 0
    hidden = HIDDEN.get(task.family, 1)
    full = EpisodePool(task, task.env_id, len(seeds), WITH_HIDDEN)
    with closing(EnvpoolEngine(task, len(seeds))) as engine, closing(full):
        starts = full.reset(seeds)
        np.testing.assert_array_equal(engine.reset(seeds), starts[:, hidden:].astype(np.float32))
        references = [placed_reference(task, start) for start in starts]
        live, rng = np.arange(len(seeds)), np.random.default_rng(0)
        for _ in range(250):
            actions = rng.uniform(-1, 1, (len(live), task.action_dim)).astype(np.float32)
            step, exact = engine.step(actions, live), full.step(actions, live)
            for position, row in enumerate(live):
                observation, reward, terminated, *_ = references[row].step(actions[position].astype(np.float64))
                np.testing.assert_array_equal(exact.observations[position], observation)
                np.testing.assert_array_equal(step.observations[position], observation[hidden:].astype(np.float32))
                assert step.rewards[position] == np.float32(reward)
                assert step.terminated[position] == terminated
            compared, ends = compared + live.size, ends + int(step.terminated.sum())
            live = live[~step.terminated]
            if not live.size:
                break
        for reference in references:
            reference.close()
    assert compared > 150, "a few hundred steps"
    assert (ends > 0) == (task.family != "halfcheetah"), "with terminal steps among them, where there are such"


@pytest.mark.parametrize("name", ["hopper", "walker2d"])
def test_the_step_that_ends_an_episode_still_pays_for_being_alive(name: str) -> None:
    before, last = fall(TASKS[name])
    assert abs(last - before) < 0.5


def test_v5_drops_the_pay_for_being_alive_on_the_last_step() -> None:
    before, last = fall(TASKS["minari-hopper"])
    assert last - before < -0.5


def fall(task: Task) -> tuple[float, float]:
    """The last two rewards of an episode in which nothing is done."""
    with closing(EnvpoolEngine(task, 1)) as engine:
        engine.reset([0])
        actions, rewards = np.zeros((1, task.action_dim), dtype=np.float32), []
        for _ in range(task.horizon):
            step = engine.step(actions, np.array([0]))
            rewards.append(float(step.rewards[0]))
            if step.terminated[0]:
                return rewards[-2], rewards[-1]
    raise AssertionError(f"{task.name} did not fall")


def test_a_fall_at_the_horizon_is_a_termination_and_no_truncation() -> None:
    def end(horizon: int) -> tuple[int, bool, bool]:
        with closing(EnvpoolEngine(replace(TASKS["hopper"], horizon=horizon), 1)) as engine:
            engine.reset([0])
            length, ended = 0, (False, False)
            while not any(ended):
                step = engine.step(np.zeros((1, 3), dtype=np.float32), np.array([0]))
                length, ended = length + 1, (bool(step.terminated[0]), bool(step.truncated[0]))
            return length, *ended

    length, *_ = end(1000)
    assert end(length) == (length, True, False)
    assert end(length - 1) == (length - 1, False, True)


def test_envpools_own_horizon_of_1000_steps_neither_ends_nor_restarts_an_episode() -> None:
    task, rng = replace(TASKS["halfcheetah"], horizon=1005), np.random.default_rng(0)
    with closing(EnvpoolEngine(task, 1)) as engine:
        engine.reset([0])
        steps = [engine.step(rng.uniform(-1, 1, (1, 6)), np.array([0])) for _ in range(1005)]
    assert [t for t, step in enumerate(steps) if step.truncated[0] or step.terminated[0]] == [1004]
    assert all(step.rewards[0] != 0 for step in steps), "a step that restarts is paid nothing"


@pytest.mark.parametrize("name", ["ant", "hopper"])
def test_results_do_not_depend_on_the_number_of_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import envpool

    make, asked = envpool.make_gymnasium, []

    def trajectory() -> list[np.ndarray]:
        with closing(EnvpoolEngine(TASKS[name], 5)) as engine:
            rng, seen = np.random.default_rng(0), [engine.reset(range(5))]
            for order in ([0, 1, 2, 3, 4], [4, 2, 0], [3, 1], [2, 4, 1, 0, 3]):
                step = engine.step(rng.uniform(-1, 1, (len(order), TASKS[name].action_dim)), np.array(order))
                seen += [step.observations, step.rewards]
            return seen

    def with_threads(count: int | None) -> list[np.ndarray]:
        def record(*positional: Any, **named: Any) -> Any:
            named["num_threads"] = count or named["num_threads"]
            asked.append(named["num_threads"])
            return make(*positional, **named)

        monkeypatch.setattr(envpool, "make_gymnasium", record)
        return trajectory()

    for one, three in zip(with_threads(None), with_threads(3), strict=True):
        np.testing.assert_array_equal(one, three)
    assert asked == [1, 3]


@pytest.mark.parametrize(
    ("name", "episodes", "tolerance"),
    [("halfcheetah", 5, 100.0), ("walker2d", 60, 3.0)],  # about three standard errors of the mean
)
def test_a_random_policy_returns_d4rls_minimum(name: str, episodes: int, tolerance: float) -> None:
    task = TASKS[name]
    returns, live, rng = np.zeros(episodes), np.arange(episodes), np.random.default_rng(0)
    with closing(EnvpoolEngine(task, episodes)) as engine:
        engine.reset(range(episodes))
        while live.size:
            step = engine.step(rng.uniform(-1, 1, (live.size, task.action_dim)), live)
            returns[live] += step.rewards
            live = live[~(step.terminated | step.truncated)]
    assert abs(returns.mean() - task.reference.minimum) < tolerance


def test_an_unknown_environment_is_refused_with_its_task() -> None:
    with pytest.raises(EngineError, match="hopper: unknown envpool environment 'Hoper-v4', did you mean 'Hopper-v4'"):
        EnvpoolEngine(replace(TASKS["hopper"], env_id="Hoper-v4"), 1)


def test_ant_v5_is_not_taken_for_ant() -> None:
    with pytest.raises(EngineError, match=r"ant: declared .* sizes \(27, 8\), but Ant-v5 has \(105, 8\)"):
        EnvpoolEngine(replace(TASKS["ant"], env_id="Ant-v5"), 1)


def test_without_envpool_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(EngineError, match=r"hopper: envpool cannot be imported .* pip install envpool"):
        EnvpoolEngine(TASKS["hopper"], 1)


def test_stepping_an_ended_row_is_caught_before_envpool_begins_it_anew() -> None:
    with closing(EnvpoolEngine(TASKS["hopper"], 1)) as engine:
        engine.reset([0])
        ended = False
        while not ended:
            ended = bool(engine.step(np.zeros((1, 3)), np.array([0])).terminated[0])
        with pytest.raises(AssertionError, match="ended episode"):
            engine.step(np.zeros((1, 3)), np.array([0]))
