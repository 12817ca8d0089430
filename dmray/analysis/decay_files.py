"""Tables (CSV) and figures (PNG and SVG) of memory lengths, and of scores with states that are cut off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from dmray.analysis.decay import START, DecayAnalysis
from dmray.analysis.stored import write_notes
from dmray.escaping import file_part
from dmray.methods import METHODS, Method
from dmray.reporting.columns import write_csv
from dmray.reporting.figures import save_figure

_WIDE_ENOUGH = 6.0  # inches, for the entries of a legend beside each other
_MOST_COLUMNS = 3  # of panels
_START_COLOUR = "#8a94a0"
_CONTEXT_LINE: dict[str, Any] = {
    "color": _START_COLOUR,
    "linewidth": 1.0,
    "linestyle": (0, (4, 3)),
    "zorder": 1,
    "label": "context length",
}


def write_decay(analysis: DecayAnalysis, into: Path) -> list[Path]:
    """Write all tables, and each data set's figures, to the folder `into`; and what they lack to `notes.txt`.

    Returns the files, of figures the PNG.
    """
    into.mkdir(parents=True, exist_ok=True)
    write_notes((*analysis.left_out, *analysis.failed), into)
    tables = {"lengths": analysis.lengths, "lengths_by_setting": analysis.lengths_by_setting}
    if not analysis.scores.empty:
        tables |= {"scores": analysis.scores, "scores_by_setting": analysis.scores_by_setting}
    files = []
    for name, table in tables.items():
        files.append(into / f"{name}.csv")
        write_csv(files[-1], pa.Table.from_pandas(table, preserve_index=False))
    for dataset, rows in analysis.lengths_by_setting.groupby("dataset", sort=False):
        files.append(into / f"lengths-{file_part(str(dataset))}.png")
        draw_lengths(rows, str(dataset), files[-1])
    if not analysis.scores.empty:
        for dataset, rows in analysis.scores_by_setting.groupby("dataset", sort=False):
            files.append(into / f"scores-{file_part(str(dataset))}.png")
            draw_scores(rows, str(dataset), files[-1])
    return files


def draw_lengths(rows: pd.DataFrame, title: str, path: Path) -> None:
    """Draw memory lengths by layer, a panel for each setting: quantiles at the start (grey) and after training.

    `rows`: of one data set in `lengths_by_setting`.
    """
    figure, panels = _panels(rows)
    for axes, look, of_setting in panels:
        _draw_lengths(axes, look, of_setting)
        axes.set_yscale("log")
    figure.supylabel("memory length in timesteps", fontsize=10)
    _finish(figure, panels[0][0], title, path)


def draw_scores(rows: pd.DataFrame, title: str, path: Path) -> None:
    """Draw the score against the number of timesteps after which states are cut off, a panel for each setting.

    `rows`: of one data set in `scores_by_setting`. The bands go from the lowest to the highest seed.
    """
    figure, panels = _panels(rows)
    ticks = sorted(set(rows["timesteps"]))
    for axes, look, of_setting in panels:
        at = of_setting["timesteps"]
        axes.plot(
            at,
            of_setting["mean"],
            color=look.colour,
            marker=look.marker,
            markersize=5,
            label="mean over seeds (band: lowest to highest)",
        )
        axes.fill_between(at, of_setting["min"], of_setting["max"], color=look.colour, alpha=0.15, linewidth=0)
        axes.axvline(of_setting["context_length"].iloc[0], **_CONTEXT_LINE)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("states cut off after n timesteps", fontsize=8)
    figure.supylabel("normalized score", fontsize=10)
    _finish(figure, panels[0][0], title, path)


class Panel(NamedTuple):
    """The place of a method's setting in a figure: `line` and `column` from 0."""

    line: int
    column: int
    method: str
    setting: str


def panels_of(settings: Sequence[tuple[str, str]]) -> list[Panel]:
    """A panel for each method and setting, in their order.

    A column for each method, and a line for each setting, where methods have settings in common; else line by line.
    """
    methods, names = (list(dict.fromkeys(each)) for each in zip(*settings, strict=True))
    if 1 < len(methods) <= _MOST_COLUMNS and len(names) < len(settings):
        placed = [Panel(names.index(name), methods.index(method), method, name) for method, name in settings]
        return sorted(placed)
    return [Panel(*divmod(number, _MOST_COLUMNS), *each) for number, each in enumerate(settings)]


def _panels(rows: pd.DataFrame) -> tuple[Any, list[tuple[Any, Method, pd.DataFrame]]]:
    """A figure with a panel for each setting: its axes, its method, and its rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here because it is slow to import
    from matplotlib.figure import Figure

    by_setting = rows.groupby(["method", "setting"], sort=False)
    groups = {(str(method), str(setting)): of_setting for (method, setting), of_setting in by_setting}
    placed = panels_of(list(groups))
    lines, columns = 1 + max(each.line for each in placed), 1 + max(each.column for each in placed)
    figure = Figure(figsize=(max(5.0, 3.2 * columns), 1.0 + 2.3 * lines), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in every.flatten():
        axes.set_visible(False)
    panels = []
    for line, column, method, setting in placed:
        look, axes = METHODS[method], every[line, column]
        axes.set_visible(True)
        axes.set_title(", ".join(filter(None, (look.label, setting))), loc="left", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        panels.append((axes, look, groups[method, setting]))
    return figure, panels


def _draw_lengths(axes: Any, look: Method, rows: pd.DataFrame) -> None:
    places = list(dict.fromkeys(zip(rows["stage"], rows["layer"], strict=True)))
    for weights, of_weights in rows.groupby("weights", sort=False):
        first = weights == START
        colour, aside = (_START_COLOUR, -0.13) if first else (look.colour, 0.13)
        known = of_weights[np.isfinite(of_weights["p95"]) & (of_weights["p5"] > 0)]
        at = [places.index(place) + aside for place in zip(known["stage"], known["layer"], strict=True)]
        axes.vlines(at, known["p5"], known["p95"], color=colour, linewidth=1.2)
        axes.vlines(at, known["p25"], known["p75"], color=colour, linewidth=4.0)
        label = "at the start" if first else "after training (median, middle 50 % and 90 %)"
        fill = "white" if first else colour
        axes.plot(at, known["p50"], look.marker, color=colour, markerfacecolor=fill, markersize=5, label=label)
        if known.empty:
            what = "no state is carried" if (of_weights["p50"] == 0).all() else "no decay: infinite"
            axes.text(0.5, 0.8, what, transform=axes.transAxes, ha="center", va="center", fontsize=9, color="#5b6675")
    axes.axhline(rows["context_length"].iloc[0], **_CONTEXT_LINE)
    stages = rows["stage"].nunique()
    names = [f"{stage}\n{layer}" if stages > 1 and layer == 1 else str(layer) for stage, layer in places]
    axes.set_xticks(range(len(places)), names)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xlabel("layer", fontsize=8)


def _finish(figure: Any, first: Any, title: str, path: Path) -> None:
    """Add the title and the legend of the first panel, and save."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    handles, labels = first.get_legend_handles_labels()
    columns = 3 if figure.get_figwidth() > _WIDE_ENOUGH else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    save_figure(figure, path)
