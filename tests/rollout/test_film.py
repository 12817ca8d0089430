from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from dmray.errors import EngineError
from dmray.rollout import make_engine
from dmray.rollout.film import write_films
from dmray.rollout.simulators.gymnasium import robot_scene
from dmray.tasks import TASKS

OPEN = TASKS["maze2d-open"]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A point that goes along y for half a second, fifty observations."""
    path = tmp_path_factory.mktemp("film") / "point.mp4"
    observations = np.column_stack([np.full(50, 2.0), np.linspace(1, 5, 50), np.zeros((50, 2))])
    try:
        write_films(OPEN, [observations.astype(np.float32)], [path])
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
    assert frames.std() > 10, "something is to be seen"


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
        write_films(TASKS["bullet-hopper"], [np.zeros((3, 15))], [tmp_path / "x.mp4"])


def test_a_machine_that_cannot_draw_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(EngineError, match=r"no picture can be drawn here \(disabled: .*libosmesa6"):
        write_films(OPEN, [np.zeros((3, 4))], [tmp_path / "x.mp4"])
