"""Tables of scores. Each number is labelled: last or best, normalized or raw, and over how many seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
import pyarrow as pa

from dmray.methods import METHODS
from dmray.progress.trial_status import TrialStatus
from dmray.records import Spread
from dmray.reporting.across import ProtocolResults
from dmray.reporting.aggregates import estimate, estimate_text, iqm
from dmray.reporting.compared import Candidate, Compared, bold_rule, compare, marked, of_one_budget
from dmray.reporting.document import Table, TableCell
from dmray.reporting.results import UNSCORED, Comparison, SeedGroup, TrialResult

NOTHING = "-"
STOPPED = TrialStatus.STOPPED_EARLY.label
IQM = "last, IQM [95 %]"
RAW = "last, raw return"
MISSING = "without a score"
_TEN = 10

_Value = Callable[[TrialResult], float | None]  # of a trial that has finished


def score_table(comparison: Comparison, baseline: str | None = None) -> Table:
    """The table of a data set: a row per method, mean ± deviation over seeds; bold as `BOLD_RULE` says."""
    rows = [[TableCell(each.label), TableCell(_seeds(each))] for each in comparison.seed_groups]
    columns = ["method", "seeds"]
    for name, value in _score_columns(comparison):
        columns.append(name)
        spreads = [spread_over(each, value) for each in comparison.seed_groups]
        candidates = candidates_of(comparison, value)
        best = marked(candidates, compare(candidates, baseline))
        for row, spread in zip(rows, spreads, strict=True):
            row.append(TableCell(spread_text(spread), row[0].text in best))
    columns.append(IQM)
    for row, seed_group in zip(rows, comparison.seed_groups, strict=True):
        row.append(TableCell(_iqm(seed_group)))
    missing = [_missing(seed_group) for seed_group in comparison.seed_groups]
    if any(text != NOTHING for text in missing):
        columns.append(MISSING)
        for row, text in zip(rows, missing, strict=True):
            row.append(TableCell(text))
    return Table(
        f"{comparison.name} ({comparison.protocol}): mean ± std over seeds",
        tuple(columns),
        tuple(map(tuple, rows)),
        note=bold_rule(candidates_of(comparison, last_normalized), "column") if len(rows) > 1 else "",
        name=f"scores-{comparison.name}",
    )


def last_few(comparison: Comparison) -> str | None:
    """The name of the column with the mean of the last evaluations: "last ten, normalized", or of fewer, or None."""
    count = _last_count(comparison)
    return None if count < 2 else f"last {'ten' if count == _TEN else count}, normalized"


def candidates_of(comparison: Comparison, value: _Value) -> list[Candidate]:
    """The rows of a data set that have scores, as what is compared."""
    return [_candidate([each], value) for each in comparison.seed_groups if spread_over(each, value) is not None]


def last_normalized(trial: TrialResult) -> float | None:
    """The main result."""
    return trial.last.normalized if trial.last else None


def _score_columns(comparison: Comparison) -> Iterable[tuple[str, _Value]]:
    yield "last, normalized", last_normalized
    yield "best, normalized", lambda trial: trial.best.normalized if trial.best else None
    if name := last_few(comparison):
        count = _last_count(comparison)
        yield name, lambda trial: trial.mean_of_last(count)
    yield RAW, lambda trial: trial.last.return_mean if trial.last else None


def _last_count(comparison: Comparison) -> int:
    """Over how many last evaluations all trials that have finished can be averaged, ten at most."""
    finished = [trial.num_evaluations for trial in comparison.trials if trial.last is not None]
    return min([*finished, _TEN]) if finished else 0


def _candidate(seed_groups: Sequence[SeedGroup], value: _Value) -> Candidate:
    """A method on one or several data sets."""
    first = seed_groups[0].trials[0].trial
    scores = tuple(_by_seed(each, value) for each in seed_groups)
    model = first.model.model_dump()
    return Candidate(seed_groups[0].label, first.method, model, first.used_training, scores, first.preset)


def _by_seed(seed_group: SeedGroup, value: _Value) -> dict[int, float]:
    return {trial.trial.seed: score for trial in seed_group.scored if (score := value(trial)) is not None}


def candidates_over(group: ProtocolResults) -> list[Candidate]:
    """The ranked methods over all complete data sets of a protocol; empty if there are none."""
    rows = {
        label: [each for comparison in group.complete for each in comparison.seed_groups if each.label == label]
        for label in group.ranked
    }
    return [_candidate(seed_groups, last_normalized) for seed_groups in rows.values() if seed_groups]


def _seeds(seed_group: SeedGroup) -> str:
    return f"{seed_group.count(TrialStatus.FINISHED)} of {len(seed_group.trials)}"


def overview_table(group: ProtocolResults, baseline: str | None = None) -> Table:
    """The last normalized scores: a row per data set, a column per method; bold as `BOLD_RULE` says."""
    labels = group.labels
    rows = []
    for comparison in group.comparisons:
        candidates = candidates_of(comparison, last_normalized)
        best = marked(candidates, compare(candidates, baseline))
        cells = {
            seed_group.label: TableCell(
                STOPPED if seed_group.stopped else spread_text(spread_over(seed_group, last_normalized)),
                seed_group.label in best,
            )
            for seed_group in comparison.seed_groups
        }
        rows.append((TableCell(comparison.name), *(cells.get(label, TableCell(NOTHING)) for label in labels)))
    if len(group.complete) > 1:
        over_all = candidates_over(group)
        best = marked(over_all, compare(over_all, baseline))
        means = {each.label: TableCell(f"{each.mean:z.1f}", each.label in best) for each in over_all}
        name = f"mean of the {len(group.complete)} data sets that all methods have"
        rows.append((TableCell(name), *(means.get(label, TableCell(NOTHING)) for label in labels)))
    return Table(
        f"Last normalized score, mean ± std over seeds ({group.name})",
        ("data set", *labels),
        tuple(rows),
        note=bold_rule(candidates_over(group), "row") if len(labels) > 1 else "",
        name=f"overview-{group.slug}",
    )


def difference_columns(groups: Iterable[ProtocolResults], baseline: str | None = None) -> pa.Table:
    """One row per comparison of two rows of a table (`differences.csv`), on each data set and over all of them.

    `low`, `high`: the 95 % interval by the t test; `p_value`: corrected for the `tests` of the same table.
    """
    rows: list[dict[str, object]] = []
    for group in groups:
        for comparison in group.comparisons:
            found = compare(candidates_of(comparison, last_normalized), baseline)
            rows += [_difference_row(group, comparison.name, each) for each in found]
        if len(group.complete) > 1:
            found = compare(candidates_over(group), baseline)
            rows += [_difference_row(group, f"all {len(group.complete)}", each) for each in found]
    return pa.Table.from_pylist(rows) if rows else pa.table({"protocol": pa.array([], pa.string())})


def _difference_row(group: ProtocolResults, data_set: str, each: Compared) -> dict[str, object]:
    (low, high), bootstrap = each.difference.interval or (None, None), each.difference.bootstrap or (None, None)
    return {
        "protocol": group.name,
        "dataset": data_set,
        "first": each.first,
        "second": each.second,
        "difference": each.difference.value,
        "low": low,
        "high": high,
        "bootstrap_low": bootstrap[0],
        "bootstrap_high": bootstrap[1],
        "seeds": each.difference.seeds_text,
        "p_value": each.p_value,
        "tests": each.tests,
        "conclusion": each.conclusion,
    }


def leads(comparison: Comparison, baseline: str | None = None) -> list[Compared]:
    """The method with the highest last score and the next one, and a method and its baseline that have one row each.

    Of the former two with the same number of training steps, of the latter the first in the registry's order.
    """
    candidates = sorted(candidates_of(comparison, last_normalized), key=lambda each: -each.mean)
    if len(candidates) < 2:
        return []
    found = {frozenset((each.first, each.second)): each for each in compare(candidates, baseline)}
    rivals = of_one_budget(candidates)[0]  # of the highest mean
    wanted = [frozenset(each.label for each in rivals[:2])]
    if pair := _first_method_and_baseline(candidates):
        wanted.append(frozenset(pair))
    return [found[pair] for pair in dict.fromkeys(wanted) if pair in found]


def leader_text(comparison: Comparison, baseline: str | None = None) -> str:
    """Sentences that say which method has the highest last score, by how much, and whether that is settled."""
    compared = leads(comparison, baseline)
    sentences = [each.lead() for each in compared] or ["Too few methods have finished to compare."]
    return " ".join([*sentences, *_left_out(comparison)])


def _first_method_and_baseline(candidates: Sequence[Candidate]) -> list[str]:
    """The labels of a method and one of its baselines; empty if no such pair has one row each."""
    for name in METHODS:
        for baseline in METHODS[name].baselines:
            rows = [each for each in candidates if each.method in (name, baseline)]
            if len(rows) == 2 and rows[0].method != rows[1].method:
                return [each.label for each in rows]
    return []


def _left_out(comparison: Comparison) -> Iterable[str]:
    """The rows that are not compared, because a mean over the seeds that were not stopped has survivorship bias."""
    stopped = [seed_group.label for seed_group in comparison.seed_groups if seed_group.stopped]
    if stopped:
        yield f"Not compared, because seeds were stopped early: {', '.join(stopped)}."


def spread_text(spread: Spread | None) -> str:
    """Mean ± standard deviation as text; `NOTHING` for None."""
    if spread is None:
        return NOTHING
    return f"{spread.mean:z.1f}" if spread.std is None else f"{spread.mean:z.1f} ± {spread.std:z.1f}"


def spread_over(seed_group: SeedGroup, value: _Value) -> Spread | None:
    """Mean and deviation of `value` over the seeds that count; None without one."""
    return Spread.of(list(_by_seed(seed_group, value).values()))


def _iqm(seed_group: SeedGroup) -> str:
    return _iqm_text(tuple(trial.last.normalized for trial in seed_group.scored if trial.last))


@cache
def _iqm_text(scores: tuple[float, ...]) -> str:
    return estimate_text(estimate([np.array(scores)], iqm)) if len(scores) > 1 else NOTHING


def _missing(seed_group: SeedGroup) -> str:
    counts = [(seed_group.count(status), status) for status in UNSCORED]
    return ", ".join(f"{count} {status.label}" for count, status in counts if count) or NOTHING
