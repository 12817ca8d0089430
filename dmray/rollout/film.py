"""Pictures of episodes, drawn from what was observed: the positions in an observation are all that a picture needs.

So the simulator that ran the episode need not be one that can draw, and what is seen is the very episode that was
scored. Positions that no observation shows (x of the robots) follow from the observed speed. MuJoCo draws through EGL,
else OSMesa; which of them works is found out in processes of their own, for MuJoCo can choose once a process.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmray.errors import EngineError
from dmray.tasks import Task

_WIDTH, _HEIGHT = 480, 360
_BACKENDS = ("egl", "osmesa")
_MOST_FRAMES_PER_S = 30.0
_MOMENTS, _GAP = 6, 6  # of a strip: pictures, and the pixels between two


@dataclass(frozen=True)
class Scene:
    """What is drawn: a MuJoCo model, positions for each frame, a camera, and the seconds between two frames."""

    model: Any
    positions: np.ndarray  # (T, nq)
    camera: Any  # a camera's number in the model, or an MjvCamera
    step_s: float


_Draw = Callable[[Scene, Path], None]


def write_films(task: Task, episodes: Sequence[np.ndarray], paths: Sequence[Path]) -> None:
    """One MP4 an episode, from its observations (T, S) each.

    Raises:
        EngineError: the task cannot be drawn, or nothing here can draw; the message says what was tried.
    """
    _write(task, episodes, paths, _film)


def write_strips(task: Task, episodes: Sequence[np.ndarray], paths: Sequence[Path]) -> None:
    """One PNG an episode: some of its moments side by side, from the first to the last. Raises as `write_films`."""
    _write(task, episodes, paths, _strip)


def _write(task: Task, episodes: Sequence[np.ndarray], paths: Sequence[Path], draw: _Draw) -> None:
    if task.engine not in _SCENES:
        drawn = ", ".join(sorted(_SCENES))
        raise EngineError(f"{task.name}: episodes of the engine '{task.engine}' cannot be drawn, those of {drawn} can")
    wanted = os.environ.get("MUJOCO_GL")
    failures = []
    for backend in (wanted,) if wanted else _BACKENDS:
        problem = _in_a_process_of_its_own(backend, (task, list(episodes), list(paths), draw))
        if problem is None:
            return
        failures.append(f"{backend}: {problem}")
    raise EngineError(
        f"{task.name}: no picture can be drawn here ({'; '.join(failures)}); install a driver with EGL, or libosmesa6, "
        'and pip install "dmray[video]"'
    )


def _in_a_process_of_its_own(backend: str, work: tuple[Task, list[np.ndarray], list[Path], _Draw]) -> str | None:
    """None, or why it failed."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_draw_all, args=(*work, answers))
    with _environment("MUJOCO_GL", backend):  # MuJoCo reads it when it is imported
        process.start()
    process.join()
    told = process.exitcode == 0 and not answers.empty()
    problem: str | None = answers.get() if told else f"exit status {process.exitcode}"
    answers.close()
    return problem


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _draw_all(task: Task, episodes: list[np.ndarray], paths: list[Path], draw: _Draw, answers: Any) -> None:
    try:
        for observations, path in zip(episodes, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(_SCENES[task.engine](task, observations.astype(np.float64)), path)
    except Exception as cause:  # noqa: BLE001 - drivers fail in ways of their own; the parent says all of them
        answers.put(f"{type(cause).__name__}: {cause}")
    else:
        answers.put(None)


def _film(scene: Scene, path: Path) -> None:
    import imageio.v2 as imageio

    skip = max(1, round(1 / (_MOST_FRAMES_PER_S * scene.step_s)))
    with imageio.get_writer(path, fps=1 / (skip * scene.step_s), macro_block_size=8) as writer:
        film: Any = writer
        for frame in _frames(scene, scene.positions[::skip]):
            film.append_data(frame)


def _strip(scene: Scene, path: Path) -> None:
    from matplotlib.image import imsave

    moments = np.linspace(0, len(scene.positions) - 1, _MOMENTS).round().astype(int)
    margin = (_WIDTH - _HEIGHT) // 2
    squares = [frame[:, margin:-margin] for frame in _frames(scene, scene.positions[moments])]
    gap = np.full((_HEIGHT, _GAP, 3), 255, dtype=np.uint8)
    imsave(path, np.hstack([part for square in squares for part in (square, gap)][:-1]))


def _frames(scene: Scene, positions: np.ndarray) -> Iterator[np.ndarray]:
    """Pictures (height, width, 3) uint8 of the model in each of `positions`."""
    import mujoco

    data = mujoco.MjData(scene.model)
    with mujoco.Renderer(scene.model, _HEIGHT, _WIDTH) as renderer:
        for each in positions:
            data.qpos[:] = each
            mujoco.mj_forward(scene.model, data)
            renderer.update_scene(data, scene.camera)
            yield renderer.render().copy()


def _robot(task: Task, observations: np.ndarray) -> Scene:
    """Locomotion: hidden positions are summed up from the speeds along them."""
    import gymnasium

    bare: Any = gymnasium.make(gymnasium.spec(task.env_id), disable_env_checker=True).unwrapped
    shown = dict(task.observation_parts)["velocities"]
    hidden = bare.model.nq + shown - sum(size for _, size in task.observation_parts[:2])
    positions = observations[:, : bare.model.nq - hidden]
    speeds = observations[:, bare.model.nq - hidden : bare.model.nq]
    return Scene(bare.model, np.hstack([np.cumsum(speeds, axis=0) * bare.dt, positions]), 0, bare.dt)


def _maze(task: Task, observations: np.ndarray) -> Scene:
    from dmray.rollout.maze2d import point_model
    from dmray.rollout.maze_layouts import LAYOUTS

    maze = LAYOUTS[task.env_id]
    rows, columns = maze.walls.shape
    camera = _from_above(np.array([rows, columns]) / 2 - 0.7, max(rows, columns))
    return Scene(point_model(maze), observations[:, :2], camera, 0.01)


def _antmaze(task: Task, observations: np.ndarray) -> Scene:
    from dmray.rollout.antmaze import CELL, ant_in_maze
    from dmray.rollout.maze_layouts import LAYOUTS

    rows, columns = LAYOUTS[task.env_id].walls.shape
    middle = CELL * (np.array([columns, rows]) / 2 - 1.5)
    return Scene(ant_in_maze(task.env_id), observations[:, :15], _from_above(middle, CELL * max(rows, columns)), 0.1)


def _kitchen(task: Task, observations: np.ndarray) -> Scene:
    from dmray.rollout.kitchen import kitchen_model

    model = kitchen_model(task)
    return Scene(model, observations[:, :30], _camera([-0.2, 0.5, 2.0], 2.2, azimuth=70, elevation=-35), 0.08)


def _from_above(middle: np.ndarray, extent: float) -> Any:
    return _camera([*middle, 0.0], 1.3 * extent, azimuth=90, elevation=-90)


def _camera(lookat: Sequence[float], distance: float, azimuth: float, elevation: float) -> Any:
    import mujoco

    camera = mujoco.MjvCamera()
    camera.lookat[:], camera.distance = lookat, distance
    camera.azimuth, camera.elevation = azimuth, elevation
    return camera


_SCENES: Mapping[str, Callable[[Task, np.ndarray], Scene]] = {
    "antmaze": _antmaze,
    "envpool": _robot,
    "gymnasium": _robot,
    "kitchen": _kitchen,
    "maze2d": _maze,
}
