from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from dmray.errors import EngineError
from dmray.rollout import EpisodeRecord, FloorPlan, make_engine, simulator_of
from dmray.rollout.pictures import Acting, WatchedEpisode, write_pictures
from dmray.rollout.simulators.antmaze import AntMazeEngine, draw_goal
from dmray.tasks import TASKS, Task

ACTING = Acting("DM+R", "maze2d-umaze-expert", 3)


def floor_plan(task: Task) -> FloorPlan:
    make = simulator_of(task).floor_plan
    assert make is not None
    return make(task)


def episode(positions: np.ndarray, dim: int, index: int = 0, subgoals: bool = False) -> WatchedEpisode:
    observations = np.zeros((len(positions), dim), dtype=np.float32)
    observations[:, :2] = positions
    record = EpisodeRecord(index, 7 + index, None, float(index), len(positions))
    return WatchedEpisode(observations, observations[::-1] if subgoals else None, record)


@pytest.mark.parametrize("name", ["maze2d-umaze", "antmaze-medium"])
def test_what_is_drawn_lies_where_the_simulator_has_it(name: str) -> None:
    """Every free cell's middle falls onto a cell without a wall, at whole numbers (column, row)."""
    task = TASKS[name]
    plan = floor_plan(task)
    free = np.argwhere(~plan.walls)
    positions = free - 0.2 if name.startswith("maze2d") else 4.0 * (free[:, ::-1] - 1)
    np.testing.assert_allclose(plan.at(positions), free[:, ::-1], atol=1e-12)


def test_a_start_and_the_goal_of_the_engine_are_on_the_floor() -> None:
    task = TASKS["antmaze-medium"]
    engine = make_engine(task, 1)
    assert isinstance(engine, AntMazeEngine)
    first, plan = engine.reset([11]), floor_plan(task)
    np.testing.assert_array_equal(engine._goals, plan.goals([11]))
    np.testing.assert_array_equal(engine._goals[0], draw_goal(task.env_id, np.random.default_rng(11)))
    for place in (first[0], engine._goals[0]):
        column, row = np.round(plan.at(place)).astype(int)
        assert not plan.walls[row, column]


@pytest.mark.parametrize(("name", "dim"), [("maze2d-umaze", 4), ("antmaze-umaze", 29)])
def test_a_maze_gives_an_overview_and_a_picture_of_each_episode(name: str, dim: int, tmp_path: Path) -> None:
    task = replace(TASKS[name], horizon=20)
    path = np.linspace([1.0, 1.0], [1.0, 3.0], 20)
    episodes = [episode(path, dim, index, subgoals=True) for index in range(2)]
    written = write_pictures(task, ACTING, episodes, tmp_path / "deep" / "x-step5")
    assert [each.name for each in written] == ["x-step5-overview.png", "x-step5-episodes.png"]
    for each in written:
        pixels = imread(each)
        assert min(pixels.shape[:2]) > 250
        assert pixels[..., :3].std() > 0.05, "something is to be seen"


def test_subgoals_are_drawn_where_there_are_any(tmp_path: Path) -> None:
    path = np.linspace([1.0, 1.0], [1.0, 3.0], 20)

    def red(subgoals: bool) -> int:
        drawn = write_pictures(
            TASKS["maze2d-umaze"], ACTING, [episode(path, 4, subgoals=subgoals)], tmp_path / str(subgoals)
        )
        pixels = imread(drawn[1])[..., :3]
        return int((np.abs(pixels - np.array([0.84, 0.15, 0.16])).max(axis=-1) < 0.03).sum())

    assert red(subgoals=True) > 20 > red(subgoals=False)


def test_a_robot_gives_moments_of_each_episode_side_by_side(tmp_path: Path) -> None:
    observations = np.zeros((30, 11), dtype=np.float32)
    observations[:, 0] = np.linspace(1.25, 0.6, 30)
    record = EpisodeRecord(0, 7, None, 3.0, 30)
    try:
        written = write_pictures(
            TASKS["hopper"], ACTING, [WatchedEpisode(observations, None, record)], tmp_path / "hop"
        )
    except EngineError as cannot:
        pytest.skip(str(cannot))
    assert [each.name for each in written] == ["hop-episode0.png"]
    pixels = imread(written[0])[80:]  # below the caption
    assert pixels.shape[1] > 5 * pixels.shape[0]
    side = pixels.shape[0]
    assert np.abs(pixels[:, :side] - pixels[:, -side:]).max() > 0.1, "it moves"


@pytest.mark.parametrize(("target", "caption"), [(150.0, "target return 150"), (None, "no target return")])
def test_what_stands_above_names_method_data_seed_target_and_score(
    target: float | None, caption: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def note(figure: Any, path: Path) -> None:
        said.append(figure.get_suptitle())
        said.extend(axes.get_title(loc="left") for axes in figure.axes[:1])

    monkeypatch.setattr("dmray.rollout.pictures._save", note)
    record = EpisodeRecord(2, 7, target, 161.86, 300)
    watched = WatchedEpisode(np.ones((20, 4), dtype=np.float32), None, record)
    write_pictures(TASKS["maze2d-umaze"], ACTING, [watched], tmp_path / "x")
    who = f"DM+R trained on maze2d-umaze-expert, seed 3, {caption}"
    assert said == [
        who,
        "1 episode: mean return 161.9, score 100.0",
        who,
        "episode 2: return 161.86, score 100.0, 300 steps",
    ]
