"""Tables of scores. Each number is labelled: last or best, normalized or raw, and over how many seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Literal

import numpy as np

from dmray.methods import METHODS
from dmray.progress.trial_status import TrialStatus
from dmray.records import Spread
from dmray.reporting.across import ProtocolResults
from dmray.reporting.aggregates import estimate, estimate_text, iqm
from dmray.reporting.document import Table, TableCell
from dmray.reporting.results import UNSCORED, Comparison, SeedGroup

NOTHING = "-"
STOPPED = TrialStatus.STOPPED_EARLY.label
IQM = "last, IQM [95 %]"
LAST_TEN = "last ten, normalized"
MISSING = "without a score"
_COLUMNS: tuple[tuple[str, Callable[[SeedGroup], Spread | None]], ...] = (
    ("last, normalized", lambda seed_group: _spread(seed_group, "last", "normalized")),
    ("best, normalized", lambda seed_group: _spread(seed_group, "best", "normalized")),
    (
        LAST_TEN,
        lambda seed_group: Spread.of([mean for trial in seed_group.scored if (mean := trial.last_ten) is not None]),
    ),
    ("last, raw return", lambda seed_group: _spread(seed_group, "last", "return_mean")),
)


def score_table(comparison: Comparison) -> Table:
    """The table of a data set: a row per method, mean ± deviation over seeds. The highest mean of a column is bold."""
    spreads = [[spread_of(seed_group) for _, spread_of in _COLUMNS] for seed_group in comparison.seed_groups]
    tops = [_top(column) for column in zip(*spreads, strict=True)]
    lacking = any(_missing(seed_group) != NOTHING for seed_group in comparison.seed_groups)
    rows = tuple(
        (
            TableCell(seed_group.label),
            TableCell(f"{seed_group.count(TrialStatus.FINISHED)} of {len(seed_group.trials)}"),
            *(_cell(spread, top) for spread, top in zip(row, tops, strict=True)),
            TableCell(_iqm(seed_group)),
            *([TableCell(_missing(seed_group))] if lacking else []),
        )
        for seed_group, row in zip(comparison.seed_groups, spreads, strict=True)
    )
    columns = ("method", "seeds", *(name for name, _ in _COLUMNS), IQM, *([MISSING] if lacking else []))
    return Table(f"{comparison.name} ({comparison.protocol}): mean ± std over seeds", columns, rows)


def overview_table(group: ProtocolResults) -> Table:
    """The last normalized scores: a row per data set, a column per method."""
    labels, comparisons = group.labels, group.comparisons
    spreads = [
        {seed_group.label: _spread(seed_group, "last", "normalized") for seed_group in comparison.seed_groups}
        for comparison in comparisons
    ]
    stopped = [
        {seed_group.label for seed_group in comparison.seed_groups if seed_group.stopped} for comparison in comparisons
    ]
    rows = [
        (TableCell(comparison.name), *_marked([row.get(label) for label in labels], [x in out for x in labels]))
        for comparison, row, out in zip(comparisons, spreads, stopped, strict=True)
    ]
    whole = [row for row in spreads if group.ranked and all(row.get(label) is not None for label in group.ranked)]
    if len(whole) > 1:
        means = [
            Spread.of([spread.mean for row in whole if (spread := row[label])]) if label in group.ranked else None
            for label in labels
        ]
        averages = [Spread(mean.mean, None, mean.n) if mean else None for mean in means]
        rows.append((TableCell(f"mean of the {len(whole)} data sets that all methods have"), *_marked(averages)))
    return Table(f"Last normalized score, mean ± std over seeds ({group.name})", ("data set", *labels), tuple(rows))


def leader_text(comparison: Comparison) -> str:
    """Sentences that say which method has the highest last score, and by how many standard errors it leads.

    Also compares the first method of the registry with its baseline, if each has one row.
    """
    scored = [
        (seed_group, spread)
        for seed_group in comparison.seed_groups
        if (spread := _spread(seed_group, "last", "normalized"))
    ]
    if len(scored) < 2:
        return " ".join(["Too few methods have finished to compare.", *_left_out(comparison)])
    ranked = sorted(scored, key=lambda item: -item[1].mean)
    with_baseline = _first_method_and_baseline(ranked)
    pairs = [ranked[:2], with_baseline] if with_baseline and with_baseline != ranked[:2] else [ranked[:2]]
    leads = [_lead((first.label, ahead), (second.label, behind)) for (first, ahead), (second, behind) in pairs]
    return " ".join([*leads, *_left_out(comparison)])


def _first_method_and_baseline(ranked: list[tuple[SeedGroup, Spread]]) -> list[tuple[SeedGroup, Spread]]:
    """The rows of a method and one of its baselines, the better first; empty if no such pair has one row each."""
    for name in METHODS:
        for baseline in METHODS[name].baselines:
            rows = [item for item in ranked if item[0].method in (name, baseline)]
            if len(rows) == 2 and rows[0][0].method != rows[1][0].method:
                return rows
    return []


def _left_out(comparison: Comparison) -> Iterable[str]:
    """The rows that are not compared, because a mean over the seeds that were not stopped has survivorship bias."""
    stopped = [seed_group.label for seed_group in comparison.seed_groups if seed_group.stopped]
    if stopped:
        yield f"Not compared, because seeds were stopped early: {', '.join(stopped)}."


def _lead(first: tuple[str, Spread], second: tuple[str, Spread]) -> str:
    (winner, ahead), (loser, behind) = first, second
    lead = ahead.mean - behind.mean
    if lead == 0:
        return f"{winner} and {loser} have the same last normalized score, {ahead.mean:.1f}."
    sentence = f"{winner} is ahead of {loser} by {lead:.1f} normalized points (last score"
    if ahead.standard_error is None or behind.standard_error is None:
        return f"{sentence}; with one seed there is no standard error)."
    error = (ahead.standard_error**2 + behind.standard_error**2) ** 0.5
    settled = "more than" if lead > 2 * error else "within"
    return f"{sentence}, standard error {error:.1f}: {settled} two standard errors; {ahead.n} and {behind.n} seeds)."


def spread_text(spread: Spread | None) -> str:
    """Mean ± standard deviation as text; `NOTHING` for None."""
    if spread is None:
        return NOTHING
    return f"{spread.mean:.1f}" if spread.std is None else f"{spread.mean:.1f} ± {spread.std:.1f}"


def _marked(spreads: Sequence[Spread | None], stopped: Sequence[bool] | None = None) -> list[TableCell]:
    top = _top(spreads)
    seed_groups = [_cell(spread, top) for spread in spreads]
    return [
        TableCell(STOPPED) if out else seed_group
        for seed_group, out in zip(seed_groups, stopped or [False] * len(seed_groups), strict=True)
    ]


def _cell(spread: Spread | None, top: float | None) -> TableCell:
    return TableCell(spread_text(spread), spread is not None and spread.mean == top)


def _top(spreads: Iterable[Spread | None]) -> float | None:
    """The highest mean; None if there are fewer than two."""
    means = [spread.mean for spread in spreads if spread is not None]
    return max(means) if len(means) > 1 else None


def _spread(seed_group: SeedGroup, which: Literal["last", "best"], value: str) -> Spread | None:
    return seed_group.spread(which, lambda score: float(getattr(score, value)))


def _iqm(seed_group: SeedGroup) -> str:
    return _iqm_text(tuple(trial.last.normalized for trial in seed_group.scored if trial.last))


@cache
def _iqm_text(scores: tuple[float, ...]) -> str:
    return estimate_text(estimate([np.array(scores)], iqm)) if len(scores) > 1 else NOTHING


def _missing(seed_group: SeedGroup) -> str:
    counts = [(seed_group.count(status), status) for status in UNSCORED]
    return ", ".join(f"{count} {status.label}" for count, status in counts if count) or NOTHING
