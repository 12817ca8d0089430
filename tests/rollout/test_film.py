from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.rollout import make_engine, simulator_of
from dmray.rollout.film import Clip, write_films, write_strips
from dmray.rollout.simulators.gymnasium import robot_scene
from dmray.tasks import TASKS

OPEN = TASKS["maze2d-open"]
CAPTION = ("DM trained on maze2d-open-v0, seed 0, target return 150", "episode 3: return 12, score 10.0, 50 steps")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A point that goes along y for half a second, fifty observations."""
    path = tmp_path_factory.mktemp("film") / "point.mp4"
    observations = np.column_stack([np.full(50, 2.0), np.linspace(1, 5, 50), np.zeros((50, 2))])
    try:
        write_films(OPEN, [Clip(observations.astype(np.float32), CAPTION)], [path])
    except EngineError as cannot:
        pytest.skip(str(cannot))
    return path


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio leaves its pipes to Python
def test_a_film_shows_what_moves(film: Path) -> None:
    import imageio.v2 as imageio

    with imageio.get_reader(film) as reader:
        frames = np.stack(list(reader.iter_data())).astype(np.int64)
    assert 15 <= len(frames) <= 18  # every third of fifty
    assert (np.abs(frames[0] - frames[-1]) > 30).any()
    assert frames.shape[1:] == (400, 480, 3)
    assert frames[0, :40].min() < 100 < 200 < frames[0, :40].mean(), "dark letters on white paper"


def test_a_film_of_a_maze_is_lit_marks_the_goal_and_is_turned_as_its_picture(tmp_path: Path) -> None:
    """x goes down and y to the right."""
    from matplotlib.image import imread

    task, observations = TASKS["maze2d-umaze"], np.tile([3.0, 1.0, 0.0, 0.0], (2, 1))
    there = np.tile([1.0, 1.0, 0.0, 0.0], (2, 1))
    clips = [Clip(each, CAPTION, (1.0, 1.0, 0.5)) for each in (observations, there)]
    paths = [tmp_path / "x.png", tmp_path / "there.png"]
    try:
        write_strips(task, clips, paths)
    except EngineError as cannot:
        pytest.skip(str(cannot))
    first, arrived = (255 * imread(path)[80:, :360, :3] for path in paths)
    assert first.mean() > 90, "not dark"
    red, green, blue = first.transpose(2, 0, 1)
    point = np.argwhere(_orange(first)).mean(axis=0)
    assert _orange(arrived).sum() > 0.8 * _orange(first).sum(), "the point is seen on the goal"
    goal = np.argwhere((green > 1.3 * red) & (green > 1.2 * blue)).mean(axis=0)
    plan = simulator_of(task).floor_plan
    assert plan is not None
    (column, row), (goal_column, goal_row) = plan(task).at(np.array([[3.0, 1.0], [1.0, 1.0]]))
    per_cell = (point[0] - goal[0]) / (row - goal_row)
    assert per_cell > 30, "x goes down, as in the picture"
    middle = (plan(task).walls.shape[0] - 1) / 2
    np.testing.assert_allclose(goal, 180 + per_cell * (np.array([goal_row, goal_column]) - middle), atol=6)
    np.testing.assert_allclose(point, 180 + per_cell * (np.array([row, column]) - middle), atol=6)


def _orange(picture: np.ndarray) -> np.ndarray:
    red, green, blue = picture.transpose(2, 0, 1)
    return np.asarray((red > 1.6 * green) & (green > blue) & (red > 120))


def test_hidden_positions_follow_from_the_speeds() -> None:
    """A hopper's x is not observed; summed up from its speed it is where the simulator has it, to a hundredth."""
    task = replace(TASKS["hopper"], engine="gymnasium")
    with closing(make_engine(task, 1)) as engine:
        observations = [engine.reset([3])[0]]
        bare: gymnasium.Env[np.ndarray, np.ndarray] = engine._environments[0]  # type: ignore[attr-defined]
        start = bare.data.qpos[0]  # type: ignore[attr-defined]
        for _ in range(12):
            observations.append(engine.step(np.full((1, 3), 0.3), np.array([0])).observations[0])
        moved = bare.data.qpos[0] - start  # type: ignore[attr-defined]
    scene = robot_scene(task, np.array(observations, dtype=np.float64))
    np.testing.assert_array_equal(scene.positions[:, 1:], np.array(observations)[:, :5])
    assert abs(scene.positions[-1, 0] - moved) < 0.01


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="bullet-hopper: episodes of the engine 'bullet' cannot be drawn"):
        write_films(TASKS["bullet-hopper"], [Clip(np.zeros((3, 15)))], [tmp_path / "x.mp4"])


def test_a_machine_that_cannot_draw_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(EngineError, match=r"no picture can be drawn here \(disabled: .*libosmesa6"):
        write_films(OPEN, [Clip(np.zeros((3, 4)))], [tmp_path / "x.mp4"])
