"""Films and strips of pictures of episodes, drawn by MuJoCo from the positions in the observations.

So the engine that ran the episode need not be able to draw, and the film shows exactly the episode that was scored.
MuJoCo draws through EGL, else OSMesa. A process can choose only once, so each is tried in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dmray.errors import EngineError
from dmray.rollout.engine import Scene
from dmray.rollout.simulator_registry import simulator_of
from dmray.tasks import Task

_WIDTH, _HEIGHT = 480, 360
_BACKENDS = ("egl", "osmesa")
_MOST_FRAMES_PER_S = 30.0
_MOMENTS, _GAP = 6, 6  # of a strip: pictures, and the pixels between two


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
    if simulator_of(task).scene is None:
        raise EngineError(f"{task.name}: episodes of the engine '{task.engine}' cannot be drawn")
    wanted = os.environ.get("MUJOCO_GL")
    failures = []
    for backend in (wanted,) if wanted else _BACKENDS:
        problem = _draw_in_process(backend, (task, list(episodes), list(paths), draw))
        if problem is None:
            return
        failures.append(f"{backend}: {problem}")
    raise EngineError(
        f"{task.name}: no picture can be drawn here ({'; '.join(failures)}); install a driver with EGL, or libosmesa6, "
        'and pip install "dmray[video]"'
    )


def _draw_in_process(backend: str, work: tuple[Task, list[np.ndarray], list[Path], _Draw]) -> str | None:
    """Draw with `backend` in a new process; None, or why it failed."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_draw_all, args=(*work, answers))
    with _environment("MUJOCO_GL", backend):  # MuJoCo reads it when it is imported
        process.start()
    process.join()
    answered = process.exitcode == 0 and not answers.empty()
    problem: str | None = answers.get() if answered else f"exit status {process.exitcode}"
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
        scene = simulator_of(task).scene
        assert scene is not None, "the parent process has checked"
        for observations, path in zip(episodes, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(scene(task, observations.astype(np.float64)), path)
    except Exception as cause:  # noqa: BLE001 - drivers fail in many ways; the parent reports all of them
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
