"""Maze episodes drawn on their maze: where a policy went, how fast, what it was paid, and which subgoals led it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from dmray.rollout.cohorts import EpisodeRecord
from dmray.rollout.film import write_strips
from dmray.tasks import Task

_MAZES = frozenset({"maze2d", "antmaze"})
_WALL, _FLOOR, _GOAL, _START, _SUBGOAL = "#3b4252", "#f7f8fa", "#2a9d4a", "#111111", "#d62728"
_SUBGOALS_SHOWN = 25  # an episode
_NEARLY_ALL = 0.95
_SIDE_INCHES, _PANELS_ACROSS = 3.4, 3


@dataclass(frozen=True)
class WatchedEpisode:
    """A rolled-out episode: what was observed (T, S), the raw subgoals (T, S) it was led by, if any, and its record."""

    observations: np.ndarray
    subgoals: np.ndarray | None
    record: EpisodeRecord


@dataclass(frozen=True)
class _Ground:
    """A maze as it is drawn: in units of cells, columns to the right, rows downwards, cell middles at whole numbers."""

    walls: np.ndarray  # (rows, columns) bool
    scale: float  # cells per unit of length
    shift: float  # of a position's coordinates, in cells
    x_is_row: bool
    goal_radius: float  # in units of length

    def at(self, positions: np.ndarray) -> np.ndarray:
        """(column, row) (..., 2) of observations or positions (..., at least 2)."""
        cells = positions[..., :2] * self.scale + self.shift
        return cells[..., ::-1] if self.x_is_row else cells


def write_pictures(task: Task, episodes: Sequence[WatchedEpisode], stem: Path) -> list[Path]:
    """PNGs whose names begin with `stem`; the paths of what was written.

    Mazes: all episodes on one maze, and a maze for each of them; other families: some moments of each episode.

    Raises:
        EngineError: an episode of a robot, and nothing here can draw it.
    """
    if task.engine in _MAZES:
        overview, each = (stem.with_name(f"{stem.name}-{what}.png") for what in ("overview", "episodes"))
        draw_maze_overview(task, episodes, overview)
        draw_maze_episodes(task, episodes, each)
        return [overview, each]
    paths = [stem.with_name(f"{stem.name}-episode{episode.record.index}.png") for episode in episodes]
    write_strips(task, [episode.observations for episode in episodes], paths)
    return paths


def draw_maze_overview(task: Task, episodes: Sequence[WatchedEpisode], path: Path) -> None:
    """One PNG: all episodes on one maze, coloured by their return."""
    figure, (axes,) = _figure(_ground(task), panels=1)
    returns = np.array([episode.record.episode_return for episode in episodes])
    ground, goals = _ground(task), _goals(task, episodes)
    _draw_ground(axes, ground, goals)
    limits = (returns.min(), max(returns.max(), returns.min() + 1e-9))
    for episode in episodes:
        values = np.full(len(episode.observations) - 1, episode.record.episode_return)
        _draw_path(axes, ground, episode, values, limits)
    figure.colorbar(axes.collections[-1], ax=axes, label="return", shrink=0.8)
    axes.set_title(f"{task.name}: {len(episodes)} episodes, mean return {returns.mean():.1f}", loc="left", fontsize=10)
    _save(figure, path)


def draw_maze_episodes(task: Task, episodes: Sequence[WatchedEpisode], path: Path) -> None:
    """One PNG with a maze an episode: its path coloured by time, and the subgoals it was led by."""
    figure, panels = _figure(_ground(task), len(episodes))
    ground = _ground(task)
    moving = max(_steps_moving(episode) for episode in episodes)
    for axes, episode in zip(panels, episodes, strict=True):
        steps = len(episode.observations)
        _draw_ground(axes, ground, _goals(task, [episode]))
        _draw_subgoals(axes, ground, episode)
        _draw_path(axes, ground, episode, np.arange(steps - 1), (0, moving))
        record = episode.record
        score = task.reference.normalize(record.episode_return)
        title = (
            f"episode {record.index}: return {record.episode_return:g} (normalized {score:.0f}), {record.length} steps"
        )
        axes.set_title(title, loc="left", fontsize=8.5)
    figure.colorbar(panels[-1].collections[-1], ax=panels, label="step", shrink=0.7, extend="max")
    figure.legend(handles=_legend(episodes), loc="outside lower left", ncols=4, frameon=False, fontsize=8.5)
    _save(figure, path)


def _ground(task: Task) -> _Ground:
    from dmray.rollout import antmaze, maze2d
    from dmray.rollout.maze_layouts import LAYOUTS, cell_of, middle_of

    walls = LAYOUTS[task.env_id].walls
    if task.engine == "maze2d":
        shift = -float(middle_of(np.zeros(2))[0])
        assert (cell_of(np.zeros(2)) == 0).all()
        return _Ground(walls, 1.0, shift, x_is_row=True, goal_radius=maze2d.GOAL_RADIUS)
    column = float(antmaze.START_CELL[1])
    return _Ground(walls, 1 / antmaze.CELL, column, x_is_row=False, goal_radius=antmaze.GOAL_RADIUS)


def _goals(task: Task, episodes: Sequence[WatchedEpisode]) -> np.ndarray:
    """The distinct goals (n, 2) of the episodes."""
    from dmray.rollout.antmaze import draw_goal
    from dmray.rollout.maze_layouts import LAYOUTS

    if task.engine == "maze2d":
        return LAYOUTS[task.env_id].goal[None]
    return np.stack([draw_goal(task.env_id, np.random.default_rng(each.record.seed)) for each in episodes])


def _steps_moving(episode: WatchedEpisode) -> int:
    """Steps until nearly all of the path's length is behind: a policy that waits at the goal would take all colours."""
    covered = np.linalg.norm(np.diff(episode.observations[:, :2], axis=0), axis=1).cumsum()
    return 1 + int(np.searchsorted(covered, _NEARLY_ALL * covered[-1])) if len(covered) else 1


def _figure(ground: _Ground, panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only wanted here
    from matplotlib.figure import Figure

    rows, columns = ground.walls.shape
    across = min(_PANELS_ACROSS, panels)
    down = ceil(panels / across)
    side = _SIDE_INCHES if panels > 1 else 1.5 * _SIDE_INCHES
    size = (1.0 + across * side, 0.7 + down * (0.3 + max(1.2, side * rows / columns)))
    figure = Figure(figsize=size, dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for unused in all_axes[panels:]:
        unused.remove()
    return figure, all_axes[:panels]


def _draw_ground(axes: Any, ground: _Ground, goals: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Circle

    axes.imshow(ground.walls, cmap=ListedColormap([_FLOOR, _WALL]), vmin=0, vmax=1, interpolation="nearest", zorder=0)
    for goal in ground.at(goals):
        axes.add_patch(Circle(goal, ground.goal_radius * ground.scale, color=_GOAL, alpha=0.35, linewidth=0, zorder=1))
        axes.plot(*goal, marker="*", color=_GOAL, markersize=9, markeredgecolor="white", zorder=5)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_path(
    axes: Any, ground: _Ground, episode: WatchedEpisode, values: np.ndarray, limits: tuple[float, float]
) -> None:
    from matplotlib.collections import LineCollection

    points = ground.at(episode.observations)
    pieces: Any = np.stack([points[:-1], points[1:]], axis=1)
    line = LineCollection(pieces, array=values, clim=limits, cmap="plasma", linewidth=1.8, capstyle="round", zorder=3)
    axes.add_collection(line)
    axes.plot(*points[0], marker="o", color=_START, markersize=5, markeredgecolor="white", zorder=6)


def _draw_subgoals(axes: Any, ground: _Ground, episode: WatchedEpisode) -> None:
    """Where the high network pointed, every few steps, with a line from where it was asked."""
    if episode.subgoals is None:
        return
    shown = np.arange(0, len(episode.observations), max(1, len(episode.observations) // _SUBGOALS_SHOWN))
    asked, pointed = ground.at(episode.observations[shown]), ground.at(episode.subgoals[shown])
    axes.plot(*np.stack([asked, pointed]).transpose(2, 0, 1), color=_SUBGOAL, linewidth=0.6, alpha=0.5, zorder=2)
    axes.scatter(*pointed.T, s=14, marker="x", color=_SUBGOAL, linewidth=1.1, zorder=4)


def _legend(episodes: Sequence[WatchedEpisode]) -> list[Any]:
    from matplotlib.lines import Line2D

    looks: Mapping[str, Mapping[str, Any]] = {
        "start": {"marker": "o", "color": _START, "markersize": 5},
        "goal": {"marker": "*", "color": _GOAL, "markersize": 9},
    }
    if any(episode.subgoals is not None for episode in episodes):
        looks = {**looks, "predicted subgoal": {"marker": "x", "color": _SUBGOAL, "markersize": 5}}
    return [Line2D([], [], linestyle="none", label=name, **look) for name, look in looks.items()]


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
