"""Tables of scores: each number says whether it is last or best, normalized or raw, and over how many seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal

from dmray.reporting.document import Cell, Table
from dmray.reporting.results import CellResult, Comparison, Protocol, SweepResults
from dmray.tasks import task_of
from dmray.tracking import Score, Spread

NOTHING = "-"
_COLUMNS: tuple[tuple[str, Literal["last", "best"], str], ...] = (
    ("last, normalized", "last", "normalized"),
    ("best, normalized", "best", "normalized"),
    ("last, raw return", "last", "return_mean"),
    ("best, raw return", "best", "return_mean"),
)


def score_table(comparison: Comparison) -> Table:
    """Methods as rows; mean and sample deviation over the finished seeds; the highest mean of a column is strong."""
    spreads = [[_spread(cell, which, value) for _, which, value in _COLUMNS] for cell in comparison.cells]
    tops = [_top(column) for column in zip(*spreads, strict=True)]
    rows = tuple(
        (
            Cell(cell.label),
            Cell(f"{cell.count('finished')} of {len(cell.trials)}"),
            *(_cell(spread, top) for spread, top in zip(row, tops, strict=True)),
            Cell(_missing(cell)),
        )
        for cell, row in zip(comparison.cells, spreads, strict=True)
    )
    columns = ("method", "seeds", *(name for name, _, _ in _COLUMNS), "without a score")
    return Table(f"{comparison.dataset.name} ({comparison.protocol}): mean ± std over seeds", columns, rows)


def overview_tables(results: SweepResults) -> list[Table]:
    """Where a protocol has several data sets: data sets as rows, methods as columns, last normalized scores."""
    ranked = sorted(results.comparisons, key=lambda comparison: str(comparison.protocol))
    groups = [(protocol, list(group)) for protocol, group in groupby(ranked, key=lambda item: item.protocol)]
    return [_overview(protocol, group) for protocol, group in groups if len(group) > 1]


def verdict(comparison: Comparison) -> str:
    """Who is ahead on the last normalized score and whether the seeds settle it; DM against DT where both are there."""
    scored = [(cell, spread) for cell in comparison.cells if (spread := _spread(cell, "last", "normalized"))]
    if len(scored) < 2:
        return "Too few methods have finished to compare."
    ranked = sorted(scored, key=lambda item: -item[1].mean)
    question = [item for item in ranked if item[0].method in ("dm", "dt")]
    asked = {cell.method for cell, _ in question} == {"dm", "dt"} and len(question) == 2
    pairs = [ranked[:2], question] if asked and question != ranked[:2] else [ranked[:2]]
    return " ".join(_lead((first.label, ahead), (second.label, behind)) for (first, ahead), (second, behind) in pairs)


def _lead(first: tuple[str, Spread], second: tuple[str, Spread]) -> str:
    (winner, ahead), (loser, behind) = first, second
    lead = ahead.mean - behind.mean
    if lead == 0:
        return f"{winner} and {loser} have the same last normalized score, {ahead.mean:.1f}."
    sentence = f"{winner} is ahead of {loser} by {lead:.1f} normalized points (last score"
    if ahead.standard_error is None or behind.standard_error is None:
        return f"{sentence}; one seed tells nothing about chance)."
    error = (ahead.standard_error**2 + behind.standard_error**2) ** 0.5
    settled = "more than" if lead > 2 * error else "within"
    return f"{sentence}, standard error {error:.1f}: {settled} two standard errors; {ahead.n} and {behind.n} seeds)."


def spread_text(spread: Spread | None) -> str:
    if spread is None:
        return NOTHING
    return f"{spread.mean:.1f}" if spread.std is None else f"{spread.mean:.1f} ± {spread.std:.1f}"


def trial_rows(results: SweepResults) -> Iterable[dict[str, object]]:
    """One flat row a trial, for spreadsheets."""
    for result in results.trials:
        trial, last, best = result.trial, result.last, result.best
        yield {
            "trial_id": trial.trial_id,
            "cell_id": trial.cell_id,
            "dataset": trial.dataset.name,
            "protocol": task_of(trial.dataset).protocol,
            "method": trial.method,
            "seed": trial.seed,
            "status": result.status,
            **trial.model.model_dump(),
            "decode": trial.evaluation.decode,
            "episodes": trial.evaluation.episodes,
            "evaluation_seed": trial.evaluation.seed,
            "steps": result.steps,
            **_score_columns("last", last),
            **_score_columns("best", best),
            "attempts": result.attempts,
            "train_s": result.train_s,
            "evaluation_s": result.evaluation_s,
            "error": result.error,
        }


def curve_rows(results: SweepResults) -> Iterable[dict[str, object]]:
    """One row an evaluation: what the figures are drawn from."""
    for result in results.trials:
        for score in result.scores:
            yield {
                "trial_id": result.trial.trial_id,
                "dataset": result.trial.dataset.name,
                "protocol": task_of(result.trial.dataset).protocol,
                "method": result.trial.method,
                "seed": result.trial.seed,
                "step": score.step,
                "target_return": score.target_return,
                "normalized": score.normalized,
                "return_mean": score.return_mean,
                "length_mean": score.length_mean,
            }


def _score_columns(name: str, score: Score | None) -> dict[str, object]:
    return {
        f"{name}_step": score.step if score else None,
        f"{name}_normalized": score.normalized if score else None,
        f"{name}_return": score.return_mean if score else None,
    }


def _overview(protocol: Protocol, comparisons: Sequence[Comparison]) -> Table:
    labels = list(dict.fromkeys(cell.label for comparison in comparisons for cell in comparison.cells))
    spreads = [
        {cell.label: _spread(cell, "last", "normalized") for cell in comparison.cells} for comparison in comparisons
    ]
    rows = [
        (Cell(comparison.dataset.name), *_marked([row.get(label) for label in labels]))
        for comparison, row in zip(comparisons, spreads, strict=True)
    ]
    whole = [row for row in spreads if all(row.get(label) is not None for label in labels)]
    if len(whole) > 1:
        means = [Spread.of([spread.mean for row in whole if (spread := row[label])]) for label in labels]
        averages = [Spread(mean.mean, None, mean.n) if mean else None for mean in means]
        rows.append((Cell(f"mean of the {len(whole)} data sets that all have"), *_marked(averages)))
    return Table(f"Last normalized score, mean ± std over seeds ({protocol})", ("data set", *labels), tuple(rows))


def _marked(spreads: Sequence[Spread | None]) -> list[Cell]:
    top = _top(spreads)
    return [_cell(spread, top) for spread in spreads]


def _cell(spread: Spread | None, top: float | None) -> Cell:
    return Cell(spread_text(spread), spread is not None and spread.mean == top)


def _top(spreads: Iterable[Spread | None]) -> float | None:
    """The highest mean; None when there is nothing to be higher than."""
    means = [spread.mean for spread in spreads if spread is not None]
    return max(means) if len(means) > 1 else None


def _spread(cell: CellResult, which: Literal["last", "best"], value: str) -> Spread | None:
    return cell.spread(which, lambda score: float(getattr(score, value)))


def _missing(cell: CellResult) -> str:
    counts = [(cell.count(status), status) for status in ("diverged", "failed", "unfinished", "missing")]
    return ", ".join(f"{count} {status}" for count, status in counts if count) or NOTHING
