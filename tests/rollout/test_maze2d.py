from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.rollout import make_engine
from dmray.rollout.mazes import LAYOUTS, MazeLayout, WaypointController, middle_of
from dmray.rollout.simulators.maze2d import Maze2dEngine, PointMasses, random_start
from dmray.tasks import TASKS
from dmray.testing.engine_contract import EngineContract

MAZES = sorted(LAYOUTS)
UMAZE = TASKS["maze2d-umaze"]


class TestUmazeEngine(EngineContract):
    task = UMAZE


class TestOpenEngine(EngineContract):
    task = TASKS["maze2d-open"]


def reference_point(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """gymnasium-robotics' point in the same maze; its constructor leaves a file in the temporary folder."""
    from gymnasium_robotics.envs.maze import maps
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

    monkeypatch.setattr("tempfile.tempdir", str(folder))
    grids = {"umaze": maps.U_MAZE, "medium": maps.MEDIUM_MAZE, "large": maps.LARGE_MAZE, "open": maps.OPEN}
    return PointMazeEnv(maze_map=grids[name]).point_env


def to_reference(state: np.ndarray, maze: MazeLayout) -> np.ndarray:
    """D4RL's (x, y, vx, vy) in gymnasium-robotics' coordinates: a quarter turn and a shift of the origin."""
    height, width = maze.walls.shape
    x, y, vx, vy = state
    return np.array([y + 0.2 + 0.5 - width / 2, height / 2 - (x + 0.2 + 0.5), vy, -vx])


@pytest.mark.parametrize("name", MAZES)
def test_physics_are_those_of_gymnasium_robotics_in_other_coordinates(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maze, reference = LAYOUTS[name], reference_point(name, tmp_path, monkeypatch)
    points, rng, contacts = PointMasses(maze, 1), np.random.default_rng(3), 0
    for _ in range(6):
        start = random_start(maze, rng)
        points.place(start[None])
        turned = to_reference(start, maze)
        reference.data.qacc_warmstart[:] = 0
        reference.set_state(turned[:2], turned[2:])
        direction = rng.uniform(-1.5, 1.5, 2)  # held for long, so that the point meets walls and corners
        for step in range(100):
            force = direction if step < 60 else rng.uniform(-1.5, 1.5, 2)
            points.step(force[None], np.array([0]))
            observation = reference.step(np.array([force[1], -force[0]]))[0]
            np.testing.assert_allclose(to_reference(points.states[0], maze), observation, rtol=0, atol=1e-9)
            contacts += reference.data.ncon > 1  # the floor is always one
    assert contacts > 50


def test_a_wall_stops_the_point() -> None:
    points = PointMasses(LAYOUTS["umaze"], 1)
    points.place(np.array([[0.8, 0.8, 0.0, 0.0]]))
    for _ in range(200):
        points.step(np.array([[1.0, -1.0]]), np.array([0]))
    # The wall's face is half a cell from the middle and the point's radius is .1; the solver lets it sink in a little.
    np.testing.assert_allclose(points.states[0, :2], [0.8 + 0.4, 0.8 - 0.4], atol=0.02)


def test_a_point_that_is_placed_anew_keeps_nothing_of_what_was_before() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        used, fresh = (PointMasses(LAYOUTS["umaze"], 1) for _ in range(2))
        corner = np.array([[1.2, 0.4, *rng.uniform(-5, 5, 2)]])
        used.place(corner)
        for force in rng.uniform(-1, 1, (5, 1, 2)):
            used.step(force, np.array([0]))  # the solver keeps its last forces as its next first guess
        force = rng.uniform(-1, 1, (1, 2))
        for points in (used, fresh):
            points.place(corner)
            points.step(force, np.array([0]))
        np.testing.assert_array_equal(used.states, fresh.states)


def test_speed_is_held_to_five_before_each_step() -> None:
    points = PointMasses(LAYOUTS["open"], 2)
    points.place(np.array([[2.0, 1.0, 0.0, 5.0], [2.0, 1.0, 0.0, 50.0]]))
    points.step(np.zeros((2, 2)), np.array([0, 1]))
    np.testing.assert_array_equal(points.states[0], points.states[1])


def test_points_in_one_maze_do_not_see_each_other() -> None:
    points = PointMasses(LAYOUTS["open"], 2)
    points.place(np.array([[2.0, 1.0, 0.0, 1.0], [2.0, 1.05, 0.0, 1.0]]))
    points.step(np.zeros((2, 2)), np.array([0, 1]))
    np.testing.assert_allclose(points.states[1] - points.states[0], [0, 0.05, 0, 0], atol=1e-12)


@pytest.mark.parametrize("name", MAZES)
def test_starts_are_spread_evenly_over_all_free_cells_give_or_take_a_tenth(name: str) -> None:
    maze, rng = LAYOUTS[name], np.random.default_rng(0)
    starts = np.stack([random_start(maze, rng) for _ in range(200 * len(maze.free_cells))])
    cells = np.rint(starts[:, :2])
    assert np.abs(starts[:, :2] - cells).max() <= 0.1
    assert np.abs(starts[:, :2] - cells).max() > 0.099
    found, counts = np.unique(cells, axis=0, return_counts=True)
    np.testing.assert_array_equal(found, maze.free_cells)
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)  # five standard deviations of a count
    np.testing.assert_allclose(starts[:, 2:].std(axis=0), 0.1, rtol=0.1)


@pytest.mark.parametrize(("distance", "reward"), [(0.49, 1.0), (0.51, 0.0)])
def test_each_step_within_half_a_unit_of_the_goal_pays_one_and_ends_nothing(distance: float, reward: float) -> None:
    engine = Maze2dEngine(TASKS["maze2d-open"], 1)
    engine.reset([0])
    engine._points.place(np.array([[2.0, 3.0 + distance, 0.0, 0.0]]))
    for _ in range(3):
        step = engine.step(np.zeros((1, 2), dtype=np.float32), np.array([0]))
        assert (step.rewards[0], step.terminated[0], step.truncated[0]) == (reward, False, False)


def test_the_reward_is_for_where_the_step_ends() -> None:
    engine = Maze2dEngine(TASKS["maze2d-open"], 1)
    engine.reset([0])
    engine._points.place(np.array([[2.0, 3.52, 0.0, -5.0]]))
    assert engine.step(np.zeros((1, 2), dtype=np.float32), np.array([0])).rewards[0] == 1.0


@pytest.mark.parametrize("name", MAZES)
def test_the_controller_reaches_the_goal_and_random_actions_do_not(name: str) -> None:
    task, maze, episodes = TASKS[f"maze2d-{name}"], LAYOUTS[name], 20
    returns = {}
    for behaviour in ("controller", "random"):
        engine, rng, controller = make_engine(task, episodes), np.random.default_rng(0), WaypointController(maze)
        observations, total, goals = (
            engine.reset(range(episodes)),
            np.zeros(episodes),
            np.tile(maze.goal, (episodes, 1)),
        )
        for _ in range(task.horizon):
            informed = controller.act(observations.astype(np.float64), goals)
            actions = informed if behaviour == "controller" else rng.uniform(-1, 1, (episodes, 2))
            observations, rewards, _, truncated = engine.step(actions, np.arange(episodes))
            total += rewards
        assert truncated.all()
        returns[behaviour] = total
    assert returns["controller"].min() > 0.4 * task.horizon
    assert returns["random"].mean() < 0.25 * task.horizon


def test_the_controller_makes_for_the_next_cell_of_the_way_round_a_wall() -> None:
    controller = WaypointController(LAYOUTS["umaze"])
    start = np.concatenate([middle_of(np.array([1, 1])), [0.0, 0.0]])
    action = controller.act(start[None], np.array([[3.0, 1.0]]))[0]  # straight there is a wall
    np.testing.assert_allclose(action, [0.0, 1.0], atol=1e-12)


def test_a_layout_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(EngineError, match="did you mean 'medium'"):
        make_engine(replace(UMAZE, env_id="medum"), 1)


def test_sizes_that_are_not_the_simulators_are_refused() -> None:
    with pytest.raises(EngineError, match=r"maze2d-umaze: declared .* sizes \(6, 2\), but umaze has \(4, 2\)"):
        make_engine(replace(UMAZE, observation_dim=6), 1)
