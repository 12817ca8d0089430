"""The report's figures as PNG and SVG: learning curves, performance profiles, effects of a 2 x 2, searches."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from dmray.files import write_atomic
from dmray.methods import METHODS
from dmray.reporting.across import ProtocolResults
from dmray.reporting.aggregates import performance_profile
from dmray.reporting.curves import Axis, Curve, curve_of, setting_curves
from dmray.reporting.factorial import EFFECTS, Factorial
from dmray.reporting.results import Comparison, SeedGroup

# for several models of one method
_LINES = ("-", "--", ":", "-.", (0, (8, 2, 2, 2)), (0, (1, 3)), (0, (6, 4, 1, 4, 1, 4)), (0, (3, 1, 1, 1)))
_MOST_MARKERS = 12
_MOST_SETTINGS, _MOST_BANDS = 20, 8  # of a figure by a field
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


def draw_by_setting(comparison: Comparison, axis: Axis, path: Path) -> bool:
    """Draw the last score against a field, for all settings that differ in nothing else.

    Returns False and writes nothing if there are none, or more than a figure can show.
    """
    curves = setting_curves(comparison, axis)
    of_one_method = max(Counter(group.method for group, _ in curves).values(), default=0)
    if not curves or len(curves) > _MOST_SETTINGS or of_one_method > len(_LINES):
        return False
    _draw_curves(comparison, curves, f"{comparison.name}: last score by {axis.text}", path, axis)
    return True


def draw_learning_curves(comparison: Comparison, path: Path) -> bool:
    """Write the figure to `path` (PNG) and as SVG next to it. Returns False and writes nothing if there is no curve."""
    curves = [
        (seed_group, curve)
        for seed_group in comparison.seed_groups
        if (curve := curve_of(seed_group)) is not None and curve.at
    ]
    if not curves:
        return False
    _draw_curves(comparison, curves, comparison.name, path)
    return True


def _draw_curves(
    comparison: Comparison, curves: Sequence[tuple[SeedGroup, Curve]], title: str, path: Path, axis: Axis | None = None
) -> None:
    """`axis`: the field below; None: training steps."""
    figure, axes = new_figure(len(curves))
    lines = {seed_group.method: cycle(_LINES) for seed_group, _ in curves}
    for seed_group, curve in curves:
        _draw_curve(axes, seed_group, curve, next(lines[seed_group.method]), band=len(curves) <= _MOST_BANDS)
    low, high = _zoomed(
        min(min(curve.low) for _, curve in curves),
        max(max(curve.high) for _, curve in curves),
    )
    axes.set_ylim(low, high)
    _draw_references(axes, comparison, low, high)
    format_axes(axes, title, "training steps" if axis is None else axis.text, "normalized score")
    if axis is not None:
        axes.set_xscale("log")
        axes.set_xticks(sorted({value for _, curve in curves for value in curve.at}))
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


def _draw_curve(axes: Any, seed_group: SeedGroup, curve: Curve, line: Any, band: bool) -> None:
    method = METHODS[seed_group.method]
    seeds = f"{curve.seeds} seed{'s' if curve.seeds > 1 else ''}{curve.end}"
    axes.plot(
        curve.at,
        curve.mean,
        color=method.colour,
        linestyle=line,
        marker=method.marker,
        markersize=5,
        markevery=max(1, len(curve.at) // _MOST_MARKERS),
        linewidth=2.0,
        label=f"{seed_group.label} ({seeds})",
    )
    if band and curve.seeds > 1:
        axes.fill_between(curve.at, curve.low, curve.high, color=method.colour, alpha=0.15, linewidth=0)


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
