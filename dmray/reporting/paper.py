"""Compare with the numbers of the paper's main figure (arXiv 2405.07943), for the same data set, decode mode and size.

`paper_results.csv` has the raw returns of the figure's bars, from the authors' published plotting code: 27 data sets, 5
methods, width 128, 6 layers, context length 20, one number each.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from dmray.models import BackboneConfig
from dmray.records import Score
from dmray.reporting.document import Table, TableCell
from dmray.reporting.results import Comparison, SeedGroup
from dmray.reporting.tables import NOTHING, spread_text

DIFFERENCES = (
    "The paper gives one number without a deviation. It does not say whether it is the last or the best score "
    "(probably the best), and over how many seeds.",
    "The paper trains for 1,000,000 steps of batch 16, its code by default for 100,000. Our steps are listed above.",
    "The paper's code evaluates 10 episodes by default, without seeds; its text says 100.",
    "The target return of the paper's transformer methods is the highest return of the data, half of it, or 10,000. "
    "Our target returns are listed above.",
)


def paper_table(comparisons: Sequence[Comparison]) -> Table | None:
    """The raw returns of the paper and ours; None if nothing is comparable."""
    rows = []
    for comparison in comparisons:
        theirs = _published().get(comparison.dataset.name, {}) if _same_protocol(comparison) else {}
        for seed_group in comparison.seed_groups:
            if seed_group.method in theirs and _same_size(seed_group):
                last, best = (seed_group.spread(which, _raw) for which in ("last", "best"))
                normalized = comparison.task.reference.normalize(theirs[seed_group.method])
                rows.append(
                    (
                        TableCell(comparison.name),
                        TableCell(seed_group.label),
                        TableCell(f"{theirs[seed_group.method]:g}"),
                        TableCell(spread_text(last) if last else NOTHING),
                        TableCell(spread_text(best) if best else NOTHING),
                        TableCell(f"{normalized:z.1f}"),
                    )
                )
    columns = ("data set", "method", "paper", "ours, last", "ours, best", "paper, normalized")
    return Table("Raw returns in the paper and here", columns, tuple(rows), name="paper") if rows else None


def _same_protocol(comparison: Comparison) -> bool:
    """Whether it is D4RL's file and decode mode `window`. (The paper's locomotion results are of the bullet tasks.)"""
    dataset = comparison.dataset
    published = dataset.path is None and dataset.generate is None and dataset.fraction == 1
    protocol = comparison.protocol
    noisy = protocol.action_noise or protocol.observation_noise
    return published and protocol.decode == "window" and not noisy


def _same_size(seed_group: SeedGroup) -> bool:
    ours, theirs = seed_group.trials[0].trial.model, BackboneConfig()
    sizes = ("d_model", "n_layer", "context_length")
    return all(getattr(ours, size) == getattr(theirs, size) for size in sizes)


def _raw(score: Score) -> float:
    return score.return_mean


@cache
def _published() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    text = (files("dmray.reporting") / "paper_results.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        found.setdefault(row["dataset"], {})[row["method"]] = float(row["return"])
    return found
