from __future__ import annotations

import warnings
from contextlib import closing
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.rollout import make_engine
from dmray.tasks import TASKS
from dmray.testing.engine_contract import EngineContract

LOCOMOTION = ("ant", "halfcheetah", "hopper", "walker2d")
REFERENCE = {name: replace(TASKS[name], engine="gymnasium") for name in LOCOMOTION}


class TestHopperEngine(EngineContract):
    task = REFERENCE["hopper"]


class TestHalfCheetahEngine(EngineContract):
    task = REFERENCE["halfcheetah"]


class TestAntEngine(EngineContract):
    task = REFERENCE["ant"]


@pytest.mark.parametrize("name", LOCOMOTION)
def test_an_episode_is_gymnasiums_own_bit_for_bit(name: str) -> None:
    task = REFERENCE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # v5 is newer: that is why it is not used
        reference = gymnasium.make(task.env_id)
    with closing(make_engine(task, 2)) as engine, closing(reference):
        observations, rng = engine.reset([4, 9]), np.random.default_rng(0)
        np.testing.assert_array_equal(observations[1], reference.reset(seed=9)[0].astype(np.float32))
        for _ in range(150):
            actions = rng.uniform(-1, 1, (2, task.action_dim)).astype(np.float32)
            step = engine.step(actions, np.arange(2))
            observation, reward, terminated, *_ = reference.step(actions[1])
            np.testing.assert_array_equal(step.observations[1], observation.astype(np.float32))
            assert (step.rewards[1], step.terminated[1]) == (reward, terminated)
            if terminated:
                break


@pytest.mark.parametrize("name", ["hopper", "walker2d"])
def test_the_step_that_ends_an_episode_still_pays_for_being_alive(name: str) -> None:
    with closing(make_engine(REFERENCE[name], 1)) as engine:
        engine.reset([0])
        actions, last = np.zeros((1, REFERENCE[name].action_dim), dtype=np.float32), None
        for _ in range(REFERENCE[name].horizon):
            before, last = last, engine.step(actions, np.array([0]))
            if last.terminated[0]:
                break
        assert before is not None
        assert last is not None
        assert last.terminated[0]
        assert abs(last.rewards[0] - before.rewards[0]) < 0.5  # v5 would drop a whole 1 here


def test_a_fall_at_the_horizon_is_a_termination_and_no_truncation() -> None:
    def fall(horizon: int) -> tuple[int, bool, bool]:
        with closing(make_engine(replace(REFERENCE["hopper"], horizon=horizon), 1)) as engine:
            engine.reset([0])
            length, ended = 0, (False, False)
            while not any(ended):
                step = engine.step(np.zeros((1, 3), dtype=np.float32), np.array([0]))
                length, ended = length + 1, (bool(step.terminated[0]), bool(step.truncated[0]))
            return length, *ended

    length, *_ = fall(1000)
    assert fall(length) == (length, True, False)
    assert fall(length - 1) == (length - 1, False, True)


def test_an_unknown_environment_is_refused_with_its_task() -> None:
    with pytest.raises(EngineError, match="hopper: gymnasium has no environment 'Hoper-v4'"):
        make_engine(replace(REFERENCE["hopper"], env_id="Hoper-v4"), 1)


def test_ant_v5_is_not_taken_for_ant() -> None:
    with pytest.raises(EngineError, match=r"ant: declared .* sizes \(27, 8\), but Ant-v5 has \(105, 8\)"):
        make_engine(replace(REFERENCE["ant"], env_id="Ant-v5"), 1)
