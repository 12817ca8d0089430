"""Tables (CSV) and figures (PNG and SVG) of memory lengths, and of scores with states that are cut off."""

from __future__ import annotations

import math
import re
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dmray.analysis.decay import START, DecayAnalysis
from dmray.methods import METHODS
from dmray.reporting.columns import write_csv
from dmray.reporting.figures import LINES, format_axes, new_figure, save_figure

_COLUMNS = 3  # of panels
_START_COLOUR = "#8a94a0"


def write_decay(analysis: DecayAnalysis, into: Path) -> list[Path]:
    """Write all tables, and the figures of each data set, to the folder `into`; returns the files (PNG, without SVG)."""
    into.mkdir(parents=True, exist_ok=True)
    tables = {"lengths": analysis.lengths, "lengths_by_setting": analysis.lengths_by_setting}
    if not analysis.scores.empty:
        tables |= {"scores": analysis.scores, "scores_by_setting": analysis.scores_by_setting}
    files = []
    for name, table in tables.items():
        files.append(into / f"{name}.csv")
        write_csv(files[-1], pa.Table.from_pandas(table, preserve_index=False))
    for dataset, rows in analysis.lengths_by_setting.groupby("dataset", sort=False):
        files.append(into / f"lengths-{_file_part(str(dataset))}.png")
        draw_lengths(rows, str(dataset), files[-1])
    if not analysis.scores.empty:
        for dataset, rows in analysis.scores_by_setting.groupby("dataset", sort=False):
            files.append(into / f"scores-{_file_part(str(dataset))}.png")
            draw_scores(rows, str(dataset), files[-1])
    return files


def draw_lengths(rows: pd.DataFrame, title: str, path: Path) -> None:
    """Draw memory lengths by layer, a panel for each setting: quantiles at the start (grey) and after training.

    `rows`: of one data set in `lengths_by_setting`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = list(rows.groupby(["method", "setting"], sort=False))
    columns = min(_COLUMNS, len(groups))
    lines = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(max(4.5, 3.2 * columns), 1.0 + 2.3 * lines), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for ((method, setting), of_setting), axes in zip(groups, panels, strict=False):
        _draw_panel(axes, str(method), str(setting), of_setting)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    panels[0].set_yscale("log")
    figure.supylabel("memory length in timesteps", fontsize=10)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path)


def draw_scores(rows: pd.DataFrame, title: str, path: Path) -> None:
    """Draw the score against the number of timesteps after which states are cut off; bands: lowest to highest seed.

    `rows`: of one data set in `scores_by_setting`.
    """
    groups = list(rows.groupby(["method", "setting"], sort=False))
    figure, axes = new_figure(len(groups))
    lines = {str(method): cycle(LINES) for (method, _), _ in groups}
    for (method, setting), line in groups:
        look = METHODS[method]
        name = f"{look.label} ({setting})" if setting else look.label
        shared = {"color": look.colour, "marker": look.marker, "markersize": 5, "linewidth": 2.0}
        axes.plot(line["timesteps"], line["mean"], linestyle=next(lines[method]), label=name, **shared)
        axes.fill_between(line["timesteps"], line["min"], line["max"], color=look.colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    ticks = sorted(set(rows["timesteps"]))
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.xaxis.minorticks_off()
    format_axes(axes, title, "timesteps after which states are cut off", "normalized score")
    save_figure(figure, path)


def _draw_panel(axes: Any, method: str, setting: str, rows: pd.DataFrame) -> None:
    look = METHODS[method]
    places = list(dict.fromkeys(zip(rows["stage"], rows["layer"], strict=True)))
    for weights, of_weights in rows.groupby("weights", sort=False):
        first = weights == START
        colour = _START_COLOUR if first else look.colour
        known = of_weights[np.isfinite(of_weights["p95"]) & (of_weights["p5"] > 0)]
        at = [places.index(place) + (-0.13 if first else 0.13) for place in zip(known["stage"], known["layer"], strict=True)]
        axes.vlines(at, known["p5"], known["p95"], color=colour, linewidth=1.2)
        axes.vlines(at, known["p25"], known["p75"], color=colour, linewidth=4.0)
        label = "at the start" if first else "after training (median, middle 50 % and 90 %)"
        fill = "white" if first else colour
        axes.plot(at, known["p50"], look.marker, color=colour, markerfacecolor=fill, markersize=5, label=label)
        if known.empty:
            what = "no state is carried" if (of_weights["p50"] == 0).all() else "no decay: infinite"
            axes.text(0.5, 0.5, what, transform=axes.transAxes, ha="center", va="center", fontsize=9, color="#5b6675")
    context = rows["context_length"].iloc[0]
    axes.axhline(context, color=_START_COLOUR, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1, label="context length")
    stages = rows["stage"].nunique()
    names = [f"{stage}\n{layer}" if stages > 1 and layer == 1 else str(layer) for stage, layer in places]
    axes.set_xticks(range(len(places)), names, fontsize=8)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.tick_params(labelsize=8)
    axes.set_title(", ".join(filter(None, (look.label, setting))), loc="left", fontsize=9)
    axes.set_xlabel("layer", fontsize=8)
    axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _file_part(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
