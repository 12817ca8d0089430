"""The report's figures as PNG and SVG: learning curves of a data set, performance profiles of a protocol."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from dmray.files import write_atomic
from dmray.methods import METHODS
from dmray.reporting.across import ProtocolResults
from dmray.reporting.aggregates import performance_profile
from dmray.reporting.results import Comparison, SeedGroup, TrialResult

_LINES = ("-", "--", ":", "-.")  # for several models of one method
_MOST_MARKERS, _MOST_POINTS = 12, 200


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


def draw_learning_curves(comparison: Comparison, path: Path) -> bool:
    """Write the figure to `path` (PNG) and as SVG next to it. Returns False and writes nothing if there is no curve."""
    curves = [
        (seed_group, curve)
        for seed_group in comparison.seed_groups
        if (curve := curve_of(seed_group)) is not None and curve.steps
    ]
    if not curves:
        return False
    figure, axes = _new_figure(len(curves))
    lines = {seed_group.method: cycle(_LINES) for seed_group, _ in curves}
    for seed_group, curve in curves:
        _draw_curve(axes, seed_group, curve, next(lines[seed_group.method]))
    _draw_references(axes, comparison)
    _format_axes(axes, comparison.name, "training steps", "normalized score")
    axes.xaxis.set_major_formatter(_thousands)
    axes.set_xlim(left=0)
    _save(figure, path)
    return True


def draw_profiles(group: ProtocolResults, path: Path) -> bool:
    """Draw performance profiles: the share of runs above each score, with 95 % bands.

    Returns False and writes nothing if no data set is complete.
    """
    if not group.complete:
        return False
    figure, axes = _new_figure(len(group.ranked))
    methods = {label: group.seed_groups(label)[0].method for label in group.ranked}
    lines = {method: cycle(_LINES) for method in methods.values()}
    highest = max(float(np.max(np.concatenate(group.scores(label)))) for label in methods)
    thresholds = np.linspace(0, max(100.0, highest) * 1.02, 200)
    for label, method in methods.items():
        share, low, high = performance_profile(group.scores(label), thresholds)
        colour = METHODS[method].colour
        axes.plot(thresholds, share, color=colour, linestyle=next(lines[method]), linewidth=2.0, label=label)
        axes.fill_between(thresholds, low, high, color=colour, alpha=0.15, linewidth=0)
    _format_axes(axes, "Performance profiles", "normalized score", "share of runs above")
    axes.set_ylim(0, 1.03)
    _save(figure, path)
    return True


def draw_search(title: str, score: str, curves: Mapping[str, Sequence[float | None]], path: Path) -> bool:
    """Draw the best score so far against the number of settings tried, by method: an unequal search shows.

    Returns False and writes nothing if no setting has a score.
    """
    if not any(best is not None for curve in curves.values() for best in curve):
        return False
    figure, axes = _new_figure(len(curves))
    for name, curve in curves.items():
        method = METHODS[name]
        known = [(number, best) for number, best in enumerate(curve, start=1) if best is not None]
        numbers, best = [number for number, _ in known], [score for _, score in known]
        label = f"{method.label} ({len(curve)} setting{'' if len(curve) == 1 else 's'})"
        style = {"color": method.colour, "marker": method.marker, "markersize": 5, "linewidth": 2.0, "label": label}
        axes.plot(numbers, best, drawstyle="steps-post", **style)
    _format_axes(axes, title, "settings tried", score)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(left=0)
    _save(figure, path)
    return True


def _new_figure(curves: int) -> tuple[Any, Any]:
    """A figure that is high enough for a legend of this many lines, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here because it is slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, max(4.2, 1.0 + 0.22 * curves)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
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


def _draw_references(axes: Any, comparison: Comparison) -> None:
    reference = comparison.task.reference
    lines = ((0.0, "reference minimum", reference.minimum), (100.0, "reference maximum", reference.maximum))
    for height, name, raw in lines:
        axes.axhline(height, color="#8a94a0", linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{name} ({raw:,.1f})",
            xy=(1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8.5,
            color="#5b6675",
        )


def _format_axes(axes: Any, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold")
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.margins(y=0.08)
    axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=10)


def _thousands(value: float, _: int) -> str:
    if value >= 1_000_000:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1000 else f"{value:g}"
