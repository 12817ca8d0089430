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
from typing import Any, NamedTuple

import numpy as np

from dmray.errors import EngineError
from dmray.rollout.engine import Scene
from dmray.rollout.simulator_registry import simulator_of
from dmray.tasks import Task

_WIDTH, _HEIGHT = 480, 360
_CAPTION_HEIGHT = 40  # two lines; with the picture a multiple of 8, as films need
_BACKENDS = ("egl", "osmesa")
_MOST_FRAMES_PER_S = 30.0
_MOMENTS, _GAP = 6, 6  # of a strip: pictures, and the pixels between two
_INK, _PAPER = (28, 36, 48), (255, 255, 255)
_LARGEST, _SMALLEST = 15, 7  # of a caption's letters, in pixels
_AMBIENT, _DIFFUSE = 0.45, 0.5  # of the light at the camera, so that a model without lights is not dark
_GOAL_COLOUR = (0.16, 0.62, 0.29, 0.55)
_GOAL_HEIGHT = 0.01


class Clip(NamedTuple):
    """An episode to draw: observations (T, S), two lines of text above it, and its goal as (x, y, radius)."""

    observations: np.ndarray
    caption: tuple[str, str] | None = None
    goal: tuple[float, float, float] | None = None


_Draw = Callable[[Scene, Clip, Path], None]


def write_films(task: Task, clips: Sequence[Clip], paths: Sequence[Path]) -> None:
    """One MP4 a clip.

    Raises:
        EngineError: the task cannot be drawn, or nothing here can draw; the message says what was tried.
    """
    _write(task, clips, paths, _film)


def write_strips(task: Task, clips: Sequence[Clip], paths: Sequence[Path]) -> None:
    """One PNG a clip: some of its moments side by side, from the first to the last. Raises as `write_films`."""
    _write(task, clips, paths, _strip)


def _write(task: Task, clips: Sequence[Clip], paths: Sequence[Path], draw: _Draw) -> None:
    if simulator_of(task).scene is None:
        raise EngineError(f"{task.name}: episodes of the engine '{task.engine}' cannot be drawn")
    wanted = os.environ.get("MUJOCO_GL")
    failures = []
    for backend in (wanted,) if wanted else _BACKENDS:
        problem = _draw_in_process(backend, (task, list(clips), list(paths), draw))
        if problem is None:
            return
        failures.append(f"{backend}: {problem}")
    raise EngineError(
        f"{task.name}: no picture can be drawn here ({'; '.join(failures)}); install a driver with EGL, or libosmesa6, "
        'and pip install "dmray[video]"'
    )


def _draw_in_process(backend: str, work: tuple[Task, list[Clip], list[Path], _Draw]) -> str | None:
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


def _draw_all(task: Task, clips: list[Clip], paths: list[Path], draw: _Draw, answers: Any) -> None:
    try:
        scene = simulator_of(task).scene
        assert scene is not None, "the parent process has checked"
        for clip, path in zip(clips, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(scene(task, clip.observations.astype(np.float64)), clip, path)
    except Exception as cause:  # noqa: BLE001 - drivers fail in many ways; the parent reports all of them
        answers.put(f"{type(cause).__name__}: {cause}")
    else:
        answers.put(None)


def _film(scene: Scene, clip: Clip, path: Path) -> None:
    import imageio.v2 as imageio

    skip = max(1, round(1 / (_MOST_FRAMES_PER_S * scene.step_s)))
    caption = _caption(clip, _WIDTH)
    with imageio.get_writer(path, fps=1 / (skip * scene.step_s), macro_block_size=8) as writer:
        film: Any = writer
        for frame in _frames(scene, clip, scene.positions[::skip]):
            film.append_data(np.vstack([caption, frame]))


def _strip(scene: Scene, clip: Clip, path: Path) -> None:
    from matplotlib.image import imsave

    moments = np.linspace(0, len(scene.positions) - 1, _MOMENTS).round().astype(int)
    margin = (_WIDTH - _HEIGHT) // 2
    squares = [frame[:, margin:-margin] for frame in _frames(scene, clip, scene.positions[moments])]
    gap = np.full((_HEIGHT, _GAP, 3), 255, dtype=np.uint8)
    row = np.hstack([part for square in squares for part in (square, gap)][:-1])
    imsave(path, np.vstack([_caption(clip, row.shape[1]), row]))


def _caption(clip: Clip, width: int) -> np.ndarray:
    """The clip's text as a picture (height, width, 3) uint8; without a row where it has none."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    if clip.caption is None:
        return np.empty((0, width, 3), dtype=np.uint8)
    scale = 1 if width <= _WIDTH else 2
    font_file = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    paper = Image.new("RGB", (width, scale * _CAPTION_HEIGHT), _PAPER)
    drawing = ImageDraw.Draw(paper)
    for place, line in enumerate(clip.caption):
        fonts = (ImageFont.truetype(font_file, size) for size in range(scale * _LARGEST, _SMALLEST, -1))
        fitting = (font for font in fonts if font.getlength(line) <= width - 8)
        font = next(fitting, ImageFont.truetype(font_file, _SMALLEST))
        drawing.text((4, 2 + place * scale * _CAPTION_HEIGHT // 2), line, fill=_INK, font=font)
    return np.asarray(paper)


def _frames(scene: Scene, clip: Clip, positions: np.ndarray) -> Iterator[np.ndarray]:
    """Pictures (height, width, 3) uint8 of the model in each of `positions`, with a disc at the clip's goal."""
    import mujoco

    data, light = mujoco.MjData(scene.model), scene.model.vis.headlight
    if scene.model.nlight == 0:
        light.ambient[:], light.diffuse[:] = _AMBIENT, _DIFFUSE
    with mujoco.Renderer(scene.model, _HEIGHT, _WIDTH) as renderer:
        for each in positions:
            data.qpos[:] = each
            mujoco.mj_forward(scene.model, data)
            renderer.update_scene(data, scene.camera)
            if clip.goal is not None:
                _add_disc(renderer.scene, clip.goal, scene.ground)
            yield renderer.render().copy()


def _add_disc(drawn: Any, goal: tuple[float, float, float], ground: float) -> None:
    import mujoco

    x, y, radius = goal
    mujoco.mjv_initGeom(
        drawn.geoms[drawn.ngeom],
        mujoco.mjtGeom.mjGEOM_CYLINDER,
        np.array([radius, _GOAL_HEIGHT, 0.0]),
        np.array([x, y, ground + _GOAL_HEIGHT]),
        np.eye(3).ravel(),
        np.array(_GOAL_COLOUR, dtype=np.float32),
    )
    drawn.ngeom += 1
