"""Pictures of episodes; in mazes the path on the maze, coloured by return or time, with the subgoals of HDM and HDT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from dmray.rollout.cohorts import EpisodeRecord
from dmray.rollout.engine import FloorPlan
from dmray.rollout.film import Clip, write_films, write_strips
from dmray.rollout.simulator_registry import simulator_of
from dmray.tasks import Task

_WALL, _FLOOR, _GOAL, _START, _SUBGOAL = "#3b4252", "#f7f8fa", "#2a9d4a", "#111111", "#d62728"
_SUBGOALS_SHOWN = 25  # an episode
_NEARLY_ALL = 0.95
_SIDE_INCHES, _PANELS_ACROSS = 3.4, 3
_TITLE: Mapping[str, Any] = {"x": 0.01, "ha": "left", "fontsize": 11, "fontweight": "bold"}


@dataclass(frozen=True)
class WatchedEpisode:
    """A rolled-out episode: observations (T, S), raw subgoals (T, S) where the policy predicts any, and the record."""

    observations: np.ndarray
    subgoals: np.ndarray | None
    record: EpisodeRecord


@dataclass(frozen=True)
class Acting:
    """Whose episodes are drawn: the label of the method, the data set and the seed that it was trained on."""

    method: str
    dataset: str
    seed: int

    def caption(self, record: EpisodeRecord) -> str:
        """What stands above a picture or a film: who acts, and for which target return."""
        target = "no target return" if record.target_return is None else f"target return {record.target_return:g}"
        return f"{self.method} trained on {self.dataset}, seed {self.seed}, {target}"


def write_pictures(task: Task, acting: Acting, episodes: Sequence[WatchedEpisode], stem: Path) -> list[Path]:
    """PNGs whose names begin with `stem`; the paths of what was written.

    Where the simulator has a floor plan (mazes): the paths of all episodes on one plan, and a plan for each of them.
    Otherwise some moments of each episode, side by side.

    Raises:
        EngineError: the task cannot be drawn, or no driver here can draw it.
    """
    floor_plan = simulator_of(task).floor_plan
    if floor_plan is not None:
        overview, each = (stem.with_name(f"{stem.name}-{what}.png") for what in ("overview", "episodes"))
        _draw_overview(task, acting, floor_plan(task), episodes, overview)
        _draw_each(task, acting, floor_plan(task), episodes, each)
        return [overview, each]
    paths = [stem.with_name(f"{stem.name}-episode{episode.record.index}.png") for episode in episodes]
    write_strips(task, [_clip(task, acting, episode) for episode in episodes], paths)
    return paths


def write_episode_films(task: Task, acting: Acting, episodes: Sequence[WatchedEpisode], stem: Path) -> list[Path]:
    """An MP4 of each episode whose name begins with `stem`; their paths. Raises as `write_pictures`."""
    paths = [stem.with_name(f"{stem.name}-episode{episode.record.index}.mp4") for episode in episodes]
    write_films(task, [_clip(task, acting, episode) for episode in episodes], paths)
    return paths


def _clip(task: Task, acting: Acting, episode: WatchedEpisode) -> Clip:
    floor_plan = simulator_of(task).floor_plan
    goal = None
    if floor_plan is not None:
        plan = floor_plan(task)
        x, y = plan.goals([episode.record.seed])[0].tolist()
        goal = (x, y, plan.goal_radius)
    return Clip(episode.observations, (acting.caption(episode.record), _result(task, episode.record)), goal)


def _result(task: Task, record: EpisodeRecord) -> str:
    score = task.reference.normalize(record.episode_return)
    return f"episode {record.index}: return {record.episode_return:g}, score {score:z.1f}, {record.length} steps"


def _draw_overview(task: Task, acting: Acting, plan: FloorPlan, episodes: Sequence[WatchedEpisode], path: Path) -> None:
    """One PNG: all episodes on one plan, coloured by their return."""
    figure, (axes,) = _figure(plan, panels=1)
    returns = np.array([episode.record.episode_return for episode in episodes])
    draw_plan(axes, plan, _goals(plan, episodes))
    limits = (returns.min(), returns.max()) if np.ptp(returns) > 0 else (returns[0] - 1, returns[0] + 1)
    for episode in episodes:
        values = np.full(len(episode.observations) - 1, episode.record.episode_return)
        _draw_path(axes, plan, episode, values, limits)
    figure.colorbar(axes.collections[-1], ax=axes, label="return", shrink=0.8)
    figure.suptitle(acting.caption(episodes[0].record), **_TITLE)
    mean, number = returns.mean(), "1 episode" if len(episodes) == 1 else f"{len(episodes)} episodes"
    axes.set_title(
        f"{number}: mean return {mean:z.1f}, score {task.reference.normalize(mean):z.1f}", loc="left", fontsize=9
    )
    _save(figure, path)


def _draw_each(task: Task, acting: Acting, plan: FloorPlan, episodes: Sequence[WatchedEpisode], path: Path) -> None:
    """One PNG with a plan an episode: its path coloured by time, and the subgoals that it was given."""
    figure, panels = _figure(plan, len(episodes))
    moving = max(_steps_moving(episode) for episode in episodes)
    for axes, episode in zip(panels, episodes, strict=True):
        steps = len(episode.observations)
        draw_plan(axes, plan, _goals(plan, [episode]))
        _draw_subgoals(axes, plan, episode)
        _draw_path(axes, plan, episode, np.arange(steps - 1), (0, moving))
        axes.set_title(_result(task, episode.record), loc="left", fontsize=8.5)
    figure.suptitle(acting.caption(episodes[0].record), **_TITLE)
    figure.colorbar(panels[-1].collections[-1], ax=panels, label="step", shrink=0.7, extend="max")
    figure.legend(handles=_legend(episodes), loc="outside lower left", ncols=4, frameon=False, fontsize=8.5)
    _save(figure, path)


def _goals(plan: FloorPlan, episodes: Sequence[WatchedEpisode]) -> np.ndarray:
    """The distinct goals (n, 2) of the episodes."""
    goals: np.ndarray = np.unique(plan.goals([episode.record.seed for episode in episodes]), axis=0)
    return goals


def _steps_moving(episode: WatchedEpisode) -> int:
    """Steps until nearly all of the path is covered: the colour scale should not be spent on waiting at the goal."""
    covered = np.linalg.norm(np.diff(episode.observations[:, :2], axis=0), axis=1).cumsum()
    return 1 + int(np.searchsorted(covered, _NEARLY_ALL * covered[-1])) if len(covered) else 1


def _figure(plan: FloorPlan, panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only wanted here
    from matplotlib.figure import Figure

    rows, columns = plan.walls.shape
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


def draw_plan(axes: Any, plan: FloorPlan, goals: np.ndarray) -> None:
    """Draw the walls, and the goals (n, 2) in the simulator's coordinates, on matplotlib axes."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Circle

    axes.imshow(plan.walls, cmap=ListedColormap([_FLOOR, _WALL]), vmin=0, vmax=1, interpolation="nearest", zorder=0)
    for goal in plan.at(goals):
        axes.add_patch(Circle(goal, plan.goal_radius * plan.scale, color=_GOAL, alpha=0.35, linewidth=0, zorder=1))
        axes.plot(*goal, marker="*", color=_GOAL, markersize=9, markeredgecolor="white", zorder=5)
    if not plan.x_is_row:
        axes.invert_yaxis()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("y \u2192" if plan.x_is_row else "x \u2192", fontsize=8)
    axes.set_ylabel("\u2190 x" if plan.x_is_row else "y \u2192", fontsize=8)  # turned: x goes down, y goes up
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_path(
    axes: Any, plan: FloorPlan, episode: WatchedEpisode, values: np.ndarray, limits: tuple[float, float]
) -> None:
    from matplotlib.collections import LineCollection

    points = plan.at(episode.observations)
    pieces: Any = np.stack([points[:-1], points[1:]], axis=1)
    line = LineCollection(pieces, array=values, clim=limits, cmap="plasma", linewidth=1.8, capstyle="round", zorder=3)
    axes.add_collection(line)
    axes.plot(*points[0], marker="o", color=_START, markersize=5, markeredgecolor="white", zorder=6)


def _draw_subgoals(axes: Any, plan: FloorPlan, episode: WatchedEpisode) -> None:
    """The predicted subgoals, every few steps, each with a line from the position where it was predicted."""
    if episode.subgoals is None:
        return
    shown = np.arange(0, len(episode.observations), max(1, len(episode.observations) // _SUBGOALS_SHOWN))
    asked, pointed = plan.at(episode.observations[shown]), plan.at(episode.subgoals[shown])
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
