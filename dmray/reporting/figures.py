"""The report's figures as PNG and SVG: learning curves, performance profiles, effects of a 2 x 2, searches."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from dmray.files import write_atomic
from dmray.methods import METHODS
from dmray.planning.settings import details_of
from dmray.reporting.across import ProtocolResults
from dmray.reporting.aggregates import performance_profile
from dmray.reporting.factorial import EFFECTS, Factorial
from dmray.reporting.results import Comparison, SeedGroup, TrialResult, label_of

_LINES = ("-", "--", ":", "-.")  # for several models of one method
_MOST_MARKERS, _MOST_POINTS = 12, 200
_MARGIN = 0.08  # above and below the data, as a share of their range
_TEXT_HEIGHT = 0.12  # of a label, as a share of the axes
_REFERENCES: dict[float, str] = {0.0: "random", 100.0: "expert"}  # by normalized score
_REFERENCE_LINE: dict[str, Any] = {"color": "#8a94a0", "linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 1}
_REFERENCE_TEXT: dict[str, Any] = {
    "textcoords": "offset points",
    "ha": "center",
    "va": "bottom",
    "fontsize": 8.5,
    "color": "#5b6675",
    "annotation_clip": False,
}
_TITLE: dict[str, Any] = {"fontsize": 13, "fontweight": "bold"}


class Curve(NamedTuple):
    """A seed group's score by step: mean, lowest and highest over `seeds` trials. `end`: the end of its legend."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int
    end: str


def curve_of(seed_group: SeedGroup) -> Curve | None:
    """The learning curve of a seed group, at the steps that all of its trials have; None if no trial has a score.

    Its trials are the finished ones. If none has finished, or seeds were stopped early, they are all that have a score.
    Of many steps only every n-th is drawn, because the figure cannot show more.
    """
    finished = [trial for trial in seed_group.scored if len(trial.scores)]
    trials = finished or [trial for trial in seed_group.trials if len(trial.scores)]
    if not trials:
        return None
    values = [_by_step(trial) for trial in trials]
    steps = sorted(set.intersection(*(set(each) for each in values)))
    steps = steps[:: -max(1, len(steps) // _MOST_POINTS)][::-1]  # the last one stays
    at = [[each[step] for each in values] for step in steps]
    end = "" if finished else ", stopped early" if seed_group.stopped else ", unfinished"
    return Curve(steps, [fmean(v) for v in at], [min(v) for v in at], [max(v) for v in at], len(trials), end)


def budget_curves(comparison: Comparison) -> list[tuple[SeedGroup, Curve]]:
    """The last score by `training.steps` of each setting that was trained for several numbers of steps.

    The seed group is that of the most steps, with the label of the setting.
    """
    members = {trial.trial.seed_group_id: trial.trial for trial in comparison.trials}
    most = max(trial.training.steps for trial in members.values())
    longest = {
        group: trial.model_copy(update={"training": trial.training.model_copy(update={"steps": most})})
        for group, trial in members.items()
    }
    details = details_of(list(longest.values()))
    settings: dict[str, dict[int, SeedGroup]] = {}
    for group in comparison.seed_groups:
        first = group.trials[0].trial
        alike = longest[first.seed_group_id]
        if any(trial.last for trial in group.scored):
            label = label_of(alike, details[alike.seed_group_id])
            settings.setdefault(label, {})[first.training.steps] = group
    return [
        (replace(by_steps[max(by_steps)], label=label), _by_budget(by_steps))
        for label, by_steps in settings.items()
        if len(by_steps) > 1
    ]


def _by_budget(by_steps: Mapping[int, SeedGroup]) -> Curve:
    steps = sorted(by_steps)
    at = [[trial.last.normalized for trial in by_steps[step].scored if trial.last] for step in steps]
    return Curve(steps, [fmean(v) for v in at], [min(v) for v in at], [max(v) for v in at], min(map(len, at)), "")


def draw_budgets(comparison: Comparison, path: Path) -> bool:
    """Draw the last score against the number of training steps, if settings were trained for several numbers.

    Returns False and writes nothing otherwise.
    """
    curves = budget_curves(comparison)
    if not curves:
        return False
    _draw_curves(comparison, curves, f"{comparison.name}: last score by training budget", path, log=True)
    return True


def draw_learning_curves(comparison: Comparison, path: Path) -> bool:
    """Write the figure to `path` (PNG) and as SVG next to it. Returns False and writes nothing if there is no curve."""
    curves = [
        (seed_group, curve)
        for seed_group in comparison.seed_groups
        if (curve := curve_of(seed_group)) is not None and curve.steps
    ]
    if not curves:
        return False
    _draw_curves(comparison, curves, comparison.name, path)
    return True


def _draw_curves(
    comparison: Comparison, curves: Sequence[tuple[SeedGroup, Curve]], title: str, path: Path, log: bool = False
) -> None:
    figure, axes = new_figure(len(curves))
    lines = {seed_group.method: cycle(_LINES) for seed_group, _ in curves}
    for seed_group, curve in curves:
        _draw_curve(axes, seed_group, curve, next(lines[seed_group.method]))
    low, high = _zoomed(
        min(min(curve.low) for _, curve in curves),
        max(max(curve.high) for _, curve in curves),
    )
    axes.set_ylim(low, high)
    _draw_references(axes, comparison, low, high)
    format_axes(axes, title, "training steps", "normalized score")
    if log:
        axes.set_xscale("log")
        axes.set_xticks(sorted({step for _, curve in curves for step in curve.steps}))
        axes.minorticks_off()
    axes.xaxis.set_major_formatter(_thousands)
    save_figure(figure, path)


def draw_profiles(group: ProtocolResults, path: Path) -> bool:
    """Draw performance profiles: the share of runs above each score, with 95 % bands.

    Returns False and writes nothing if no data set is complete.
    """
    if not group.complete:
        return False
    figure, axes = new_figure(len(group.ranked))
    methods = {label: group.seed_groups(label)[0].method for label in group.ranked}
    lines = {method: cycle(_LINES) for method in methods.values()}
    runs = np.concatenate([each for label in methods for each in group.scores(label)])
    low, high = _zoomed(float(runs.min()), float(runs.max()))
    thresholds = np.linspace(low, high, 200)
    for label, method in methods.items():
        share, lowest, highest = performance_profile(group.scores(label), thresholds)
        look = METHODS[method]
        axes.plot(
            thresholds,
            share,
            color=look.colour,
            linestyle=next(lines[method]),
            marker=look.marker,
            markersize=5,
            markevery=len(thresholds) // _MOST_MARKERS,
            linewidth=2.0,
            label=label,
        )
        axes.fill_between(thresholds, lowest, highest, color=look.colour, alpha=0.15, linewidth=0)
    for height, name in _REFERENCES.items():
        if low <= height <= high:
            axes.axvline(height, **_REFERENCE_LINE)
            axes.annotate(f"{name} = {height:g}", (height, 1.0), (0, 2), ("data", "axes fraction"), **_REFERENCE_TEXT)
    format_axes(axes, "", "normalized score", "share of runs above")
    figure.suptitle(f"Performance profiles over {len(group.complete)} data sets", x=0.01, ha="left", **_TITLE)
    axes.set_xlim(low, high)
    axes.set_ylim(-0.02, 1.03)
    save_figure(figure, path)
    return True


def draw_effects(table: Factorial, path: Path) -> bool:
    """Draw the effects of a 2 x 2 with their intervals: a panel for each effect, a row for each data set and the mean.

    Returns False and writes nothing if no data set is complete.
    """
    if not table.rows:
        return False
    figure = _empty_figure(1.6 + 0.36 * len(table.rows))
    panels = figure.subplots(1, len(EFFECTS), sharey=True)
    first, second = table.square.backbones
    heads = (f"backbone: {second} - {first}", "returns: with - without", "interaction")
    for axes, effect, head in zip(panels, EFFECTS, heads, strict=True):
        axes.axvline(0.0, **_REFERENCE_LINE)
        for height, row in enumerate(table.rows):
            found, mean = row.effects[effect], height == len(table.cells)
            colour, marker = ("#1c2430", "D") if mean else ("#0072B2", "o")
            if found.interval is not None:
                axes.plot(found.interval, (height, height), color=colour, linewidth=2.0, zorder=2)
            axes.plot([found.value], [height], color=colour, marker=marker, markersize=6, zorder=3)
        axes.set_xlabel(head, fontsize=10)
        axes.grid(axis="x", color="#e6eaee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    panels[0].set_yticks(range(len(table.rows)), [row.name for row in table.rows])
    panels[0].set_ylim(len(table.rows) - 0.5, -0.5)
    figure.suptitle("Effects in normalized points, 95 % intervals", x=0.01, ha="left", **_TITLE)
    figure.supxlabel(", ".join(table.labels), fontsize=9, color="#5b6675")
    save_figure(figure, path)
    return True


def draw_search(title: str, score: str, curves: Mapping[str, Sequence[float | None]], path: Path) -> bool:
    """Draw the best score so far against the number of settings tried, by method: an unequal search shows.

    Returns False and writes nothing if no setting has a score.
    """
    if not any(best is not None for curve in curves.values() for best in curve):
        return False
    figure, axes = new_figure(len(curves))
    for name, curve in curves.items():
        method = METHODS[name]
        known = [(number, best) for number, best in enumerate(curve, start=1) if best is not None]
        numbers, best = [number for number, _ in known], [score for _, score in known]
        label = f"{method.label} ({len(curve)} setting{'' if len(curve) == 1 else 's'})"
        style = {"color": method.colour, "marker": method.marker, "markersize": 5, "linewidth": 2.0, "label": label}
        axes.plot(numbers, best, drawstyle="steps-post", **style)
    format_axes(axes, title, "settings tried", score)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(left=0)
    save_figure(figure, path)
    return True


def new_figure(curves: int) -> tuple[Any, Any]:
    """A figure that is high enough for a legend of this many lines, and its axes."""
    figure = _empty_figure(max(4.2, 1.0 + 0.22 * curves))
    return figure, figure.add_subplot()


def _empty_figure(height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here because it is slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure to `path` (PNG) and as SVG next to it."""
    for file, options in ((path, {"Software": None}), (path.with_suffix(".svg"), {"Date": None})):
        drawn = io.BytesIO()
        figure.savefig(drawn, format=file.suffix[1:], metadata=options)
        write_atomic(file, drawn.getvalue())


def _by_step(trial: TrialResult) -> dict[int, float]:
    return dict(zip(trial.scores.step.tolist(), trial.scores.normalized.tolist(), strict=True))


def _draw_curve(axes: Any, seed_group: SeedGroup, curve: Curve, line: str) -> None:
    method = METHODS[seed_group.method]
    seeds = f"{curve.seeds} seed{'s' if curve.seeds > 1 else ''}{curve.end}"
    axes.plot(
        curve.steps,
        curve.mean,
        color=method.colour,
        linestyle=line,
        marker=method.marker,
        markersize=5,
        markevery=max(1, len(curve.steps) // _MOST_MARKERS),
        linewidth=2.0,
        label=f"{seed_group.label} ({seeds})",
    )
    if curve.seeds > 1:
        axes.fill_between(curve.steps, curve.low, curve.high, color=method.colour, alpha=0.15, linewidth=0)


def _zoomed(low: float, high: float) -> tuple[float, float]:
    """The limits of an axis that shows scores from `low` to `high`, and little more."""
    margin = max(_MARGIN * (high - low), 1.0)
    return low - margin, high + margin


def _draw_references(axes: Any, comparison: Comparison, low: float, high: float) -> None:
    """The lines of a random policy and of an expert, with their raw returns, beside the axes where no curve is.

    A line outside of the axes is only named, with an arrow to where it is.
    """
    raw = comparison.task.reference
    texts: dict[float, list[str]] = {}
    for score, name in _REFERENCES.items():
        text = f"{name} = {score:g}\n(return {raw.minimum if score == 0 else raw.maximum:z,.1f})"
        if low <= score <= high:
            axes.axhline(score, **_REFERENCE_LINE)
        else:
            text = f"{chr(0x2193) if score < low else chr(0x2191)} {text}"
        texts.setdefault(min(max(score, low), high), []).append(text)
    heights = sorted(texts)
    if len(heights) > 1 and heights[1] - heights[0] < _TEXT_HEIGHT * (high - low):  # they would overprint
        texts = {heights[0]: [*texts[heights[1]], *texts[heights[0]]]}
    for height, lines in texts.items():
        place = "bottom" if height == low else "top" if height == high else "center"
        axes.annotate(
            "\n".join(reversed(lines) if height == low else lines),
            (1.0, height),
            (6, 0),
            ("axes fraction", "data"),
            **{**_REFERENCE_TEXT, "ha": "left", "va": place},
        )


def format_axes(axes: Any, title: str, x_label: str, y_label: str, legend: bool = True) -> None:
    """Give the axes the report's look, and with `legend` their figure its legend, of all that has been drawn."""
    axes.set_title(title, loc="left", **_TITLE)
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if legend:
        axes.figure.legend(loc="outside right upper", frameon=False, fontsize=10, handlelength=3.2)


def _thousands(value: float, _: int) -> str:
    if value >= 1_000_000:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1000 else f"{value:g}"
