"""Figures of subgoals: distances and reach rates beside the baselines, scores by source, and pictures of the states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmray.analysis.subgoal_measures import (
    FED_BACK,
    LABEL,
    LATER,
    MEAN,
    PREDICTED,
    PRESENT,
    PREVIOUS,
    REFERENCES,
    SOURCES,
    ScaledStates,
)
from dmray.analysis.subgoal_results import Setting
from dmray.analysis.subgoal_sources import FED, RANDOM
from dmray.methods import METHODS, Method
from dmray.reporting.aggregates import estimate, mean
from dmray.reporting.figures import format_axes, new_figure, save_figure
from dmray.rollout import FloorPlan, simulator_of
from dmray.rollout.pictures import draw_plan
from dmray.tasks import Task

_GREY = "#5b6675"
_LOOKS: Mapping[str, Mapping[str, Any]] = {  # of all sources but the prediction, which has its method's
    LABEL: {"color": "#111111", "marker": "*", "linestyle": "-"},
    PREVIOUS: {"color": _GREY, "marker": "x", "linestyle": (0, (1, 3))},
    LATER: {"color": _GREY, "marker": "o", "linestyle": "--"},
    RANDOM: {"color": _GREY, "marker": "o", "linestyle": "--"},
    MEAN: {"color": _GREY, "marker": "s", "linestyle": ":"},
    PRESENT: {"color": _GREY, "marker": "^", "linestyle": "-."},
}
_PANELS = {
    "to_label": "distance to label",
    "to_visited": "to nearest visited",
    "reached": "share reached",
}
_LINES = ("-", "--", ":", "-.")
_SHOWN, _BACKGROUND = 150, 5000  # subgoals and states of a picture


class Picture(NamedTuple):
    """What a picture shows. Raw states: `background` (M, S); `states`, `labels`, `predicted` (P, S) at the points.

    `predicted`: when the policy gets its own subgoals back, as in an evaluation.
    """

    task: Task
    background: np.ndarray
    states: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    scaled: ScaledStates


def draw_sources(dataset: str, settings: Sequence[Setting], path: Path) -> None:
    """Draw the distances and the share reached of predictions, labels and baselines: a row per setting."""
    figure, axes = _rows_figure(settings, panels=len(_PANELS))
    for panel, (name, title) in zip(axes, _PANELS.items(), strict=True):
        for row, setting in enumerate(settings):
            for place, source in enumerate(SOURCES):
                found = estimate([setting.values(source, name)], mean)
                _draw_mark(panel, setting, source, row + _offset(place, len(SOURCES)), found.value, found.interval)
        format_axes(panel, dataset if panel is axes[0] else "", title, "", legend=panel is axes[-1])
        panel.set_xlim(left=0)  # marks at 0 are not cut in half
    _name_rows(axes[0], settings)
    save_figure(figure, path)


def draw_reach(dataset: str, settings: Sequence[Setting], path: Path) -> None:
    """Draw the share of subgoals that are reached against the radius at which one counts as reached."""
    figure, axes = new_figure(len(settings) + len(SOURCES))
    lines = {setting.method: cycle(_LINES) for setting in settings}
    for setting in settings:
        style = {"color": METHODS[setting.method].colour, "linestyle": next(lines[setting.method])}
        axes.plot(setting.radii, setting.reach(PREDICTED), **style, linewidth=2.0, label=setting.label)
    first = settings[0]
    for source in REFERENCES:
        look = {name: value for name, value in _LOOKS[source].items() if name != "marker"}
        axes.plot(first.radii, first.reach(source), **look, linewidth=1.2, label=source)
    axes.axvline(first.runs[0].radius, color="#8a94a0", linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    within = first.runs[0].within
    format_axes(axes, dataset, "radius (z-scored)", f"share reached within {within} timesteps")
    axes.set_ylim(-0.02, 1.03)
    save_figure(figure, path)


def draw_scores(dataset: str, settings: Sequence[Setting], path: Path) -> None:
    """Draw the normalized score of each setting by what its low network was fed."""
    figure, (axes,) = _rows_figure(settings, panels=1)
    for row, setting in enumerate(settings):
        for place, fed in enumerate(FED):
            value, interval = setting.score(fed)
            _draw_mark(axes, setting, fed, row + _offset(place, len(FED)), value, interval)
    format_axes(axes, dataset, "normalized score", "")
    _name_rows(axes, settings)
    save_figure(figure, path)


def draw_picture(picture: Picture, method: Method, title: str, path: Path) -> None:
    """Draw the states of the data set, and on them the labels (left) and the predictions that are fed back (right).

    A thin line leads from a state to its subgoal. Mazes are drawn from above; of other tasks the two leading principal
    components of the z-scored states are shown.
    """
    floor_plan = simulator_of(picture.task).floor_plan
    plan = floor_plan(picture.task) if floor_plan is not None else None
    project, axis_labels = _on_plan(plan) if plan is not None else _on_components(picture)
    figure, axes = new_figure(3)
    axes.remove()
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    shown = np.unique(np.linspace(0, len(picture.states) - 1, _SHOWN).astype(int))
    background = project(picture.background[:: -(-len(picture.background) // _BACKGROUND)])
    start = project(picture.states[shown])
    looks = {LABEL: _LOOKS[LABEL], PREDICTED: _look(method)}
    for panel, (name, subgoals) in zip(panels, ((LABEL, picture.labels), (PREDICTED, picture.predicted)), strict=True):
        if plan is not None:
            draw_plan(panel, plan, np.empty((0, 2)))
        first = {"label": "states of the data set"} if panel is panels[0] else {}
        panel.scatter(*background.T, s=3, color="#b8c0c8", linewidth=0, zorder=1, **first)
        end, look = project(subgoals[shown]), looks[name]
        panel.plot(*np.stack([start, end]).transpose(2, 0, 1), color=look["color"], linewidth=0.4, alpha=0.4, zorder=2)
        panel.scatter(*end.T, s=20, color=look["color"], marker=look["marker"], zorder=3, label=name, linewidth=0.5)
        heading, y_label = ("labels", axis_labels[1]) if panel is panels[0] else ("predictions, fed back", "")
        format_axes(panel, heading, axis_labels[0], y_label, legend=False)
    figure.set_size_inches(8.0, 4.6)
    figure.suptitle(title, fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path)


Project = Callable[[np.ndarray], np.ndarray]  # raw states (n, S) to places (n, 2)


def _on_plan(plan: FloorPlan) -> tuple[Project, tuple[str, str]]:
    return plan.at, ("y \u2192", "\u2190 x") if plan.x_is_row else ("x \u2192", "y \u2192")


def _on_components(picture: Picture) -> tuple[Project, tuple[str, str]]:
    scaled = picture.scaled.scaled(picture.background)
    components, shares = principal_components(scaled)
    labels = tuple(f"component {number} ({share:.0%} of the variance)" for number, share in enumerate(shares, start=1))
    return lambda states: picture.scaled.scaled(states) @ components.T, (labels[0], labels[1])


def principal_components(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two leading principal components (2, S) of states (M, S), and the share of the variance of each, (2,)."""
    _, values, components = np.linalg.svd(states - states.mean(axis=0), full_matrices=False)
    shares = np.square(values) / np.square(values).sum()
    return components[:2], shares[:2]


def _rows_figure(settings: Sequence[Setting], panels: int) -> tuple[Any, Any]:
    figure, axes = new_figure(3 * len(settings))
    axes.remove()
    return figure, figure.subplots(1, panels, sharey=True, squeeze=False)[0]


def _name_rows(axes: Any, settings: Sequence[Setting]) -> None:
    axes.set_yticks(range(len(settings)), [setting.label.replace(", ", ",\n") for setting in settings])
    axes.set_ylim(len(settings) - 0.5, -0.5)


def _offset(place: int, places: int) -> float:
    return 0.6 * ((place + 0.5) / places - 0.5)


def _look(method: Method) -> Mapping[str, Any]:
    return {"color": method.colour, "marker": method.marker}


def _draw_mark(
    axes: Any, setting: Setting, source: str, height: float, value: float, interval: tuple[float, float] | None
) -> None:
    """A mark at the value, and its interval as a line. Each look gets one entry in the figure's legend."""
    method = METHODS[setting.method]
    if source in (PREDICTED, FED_BACK):
        look, label = dict(_look(method)), f"{source} ({method.label})"
        if source == FED_BACK:
            look["markerfacecolor"] = "white"
    else:
        look, label = {name: value for name, value in _LOOKS[source].items() if name != "linestyle"}, source
    known = {text for panel in axes.figure.axes for text in panel.get_legend_handles_labels()[1]}
    named = {} if label in known else {"label": label}
    if interval is not None:
        axes.plot(interval, (height, height), color=look["color"], linewidth=1.4, zorder=2)
    axes.plot([value], [height], linestyle="none", markersize=6, zorder=3, clip_on=False, **look, **named)
