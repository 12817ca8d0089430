from __future__ import annotations

import warnings
from contextlib import closing
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.rollout import make_engine
from dmray.rollout.mazes import LAYOUTS
from dmray.rollout.simulators.antmaze import GOAL_CELLS, START_CELL, AntMazeEngine, ant_in_maze, middle_of
from dmray.tasks import TASKS
from dmray.testing.engine_contract import EngineContract

UMAZE = TASKS["antmaze-umaze"]
MAZES = sorted(GOAL_CELLS)


class TestAntMazeEngine(EngineContract):
    task = UMAZE


def placed_at(x: float, y: float, count: int = 1) -> np.ndarray:
    """First observations (count, 29) of an ant that stands at (x, y)."""
    model = ant_in_maze("umaze")
    return np.tile(np.concatenate([[x, y], model.qpos0[2:], np.zeros(14)]), (count, 1))


def test_the_ant_is_gymnasiums_with_d4rls_time_step_contacts_and_torques() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # v5 is newer
        reference = gymnasium.make("Ant-v4").unwrapped
    reference.model.opt.timestep = 0.02
    reference.model.geom_solimp[:, :3] = 0.8, 0.8, 0.01
    with closing(AntMazeEngine(UMAZE, 1)) as engine, closing(reference):
        start = engine.reset([3])[0].astype(np.float64)
        engine.place(start[None])
        reference.data.qacc_warmstart[:] = 0
        reference.set_state(start[:15], start[15:])
        for action in np.random.default_rng(0).uniform(-1, 1, (40, 8)):
            reference.do_simulation(30.0 / 150.0 * action, 5)
            step = engine.step(action[None], np.array([0]))
            expected = np.concatenate([reference.data.qpos, reference.data.qvel])
            np.testing.assert_allclose(step.observations[0], expected, rtol=0, atol=1e-5)
        assert np.abs(expected[:2]).max() < 1.0, "the ant should have kept away from the walls"


@pytest.mark.parametrize("direction", [(-1.0, 0.0), (0.0, -1.0)])
def test_walls_stop_the_ant_half_a_cell_from_the_middle(direction: tuple[float, float]) -> None:
    start = placed_at(0.0, 0.0)
    start[0, 15:17] = 8.0 * np.array(direction)  # thrown at the wall two units away
    with closing(AntMazeEngine(UMAZE, 1)) as engine:
        engine.reset([0])
        engine.place(start)
        farthest = 0.0
        for _ in range(30):
            observation = engine.step(np.zeros((1, 8), dtype=np.float32), np.array([0])).observations[0]
            farthest = max(farthest, float(observation[:2] @ direction))
    assert 0.5 < farthest < 2.0


@pytest.mark.parametrize("name", MAZES)
def test_start_and_goal_are_free_cells_of_the_layout(name: str) -> None:
    walls = LAYOUTS[name].walls
    assert not walls[START_CELL]
    assert not walls[GOAL_CELLS[name]]


def test_each_episode_draws_its_goal_in_the_goal_cells_upper_corner() -> None:
    with closing(AntMazeEngine(TASKS["antmaze-medium"], 400)) as engine:
        engine.reset(range(400))
        shift = engine._goals - middle_of(GOAL_CELLS["medium"])
    assert (shift >= 0).all()
    assert shift.max() <= 1.5
    np.testing.assert_allclose(shift.mean(axis=0), 0.75, atol=0.06)  # of two uniform draws, up to 1 and up to .5
    np.testing.assert_allclose(shift.std(axis=0), np.sqrt(1 / 12 + 0.25 / 12), atol=0.04)


def test_ants_start_at_the_origin_give_or_take_a_tenth_with_a_little_motion() -> None:
    with closing(AntMazeEngine(UMAZE, 300)) as engine:
        first = engine.reset(range(300))
    assert np.abs(first[:, :2]).max() <= 0.1
    np.testing.assert_allclose(first[:, 2].mean(), 0.75, atol=0.02)
    np.testing.assert_allclose(first[:, 15:].std(), 0.1, rtol=0.1)


@pytest.mark.parametrize(("distance", "reached"), [(0.4, True), (0.6, False)])
def test_arriving_within_half_a_unit_pays_one_and_ends_the_episode(distance: float, reached: bool) -> None:
    with closing(AntMazeEngine(UMAZE, 1)) as engine:
        engine.reset([0])
        x, y = engine._goals[0]
        engine.place(placed_at(x, y - distance))
        step = engine.step(np.zeros((1, 8), dtype=np.float32), np.array([0]))
        assert (step.rewards[0], step.terminated[0], step.truncated[0]) == (float(reached), reached, False)


def test_a_fallen_ant_goes_on() -> None:
    upside_down = placed_at(0.0, 0.0)
    upside_down[0, 2:7] = 0.3, 0.0, 1.0, 0.0, 0.0
    with closing(AntMazeEngine(UMAZE, 1)) as engine:
        engine.reset([0])
        engine.place(upside_down)
        for _ in range(20):
            step = engine.step(np.zeros((1, 8), dtype=np.float32), np.array([0]))
            assert (step.rewards[0], step.terminated[0]) == (0.0, False)


def test_random_actions_reach_no_goal() -> None:
    """D4RL's reference minimum of antmaze is 0: a random policy's success."""
    rng, total = np.random.default_rng(0), 0.0
    with closing(make_engine(replace(UMAZE, horizon=100), 10)) as engine:
        engine.reset(range(10))
        for _ in range(100):
            total += engine.step(rng.uniform(-1, 1, (10, 8)), np.arange(10)).rewards.sum()
    assert total == UMAZE.reference.minimum


def test_an_unknown_maze_is_refused_with_the_nearest() -> None:
    with pytest.raises(EngineError, match="unknown maze 'mediun', did you mean 'medium'"):
        AntMazeEngine(replace(UMAZE, env_id="mediun"), 1)
