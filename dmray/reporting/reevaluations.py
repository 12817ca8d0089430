"""The evaluations that were made after the training: their part of the report, and their rows of a table."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import pyarrow as pa

from dmray.records import Score
from dmray.records.scores import EVALUATION_METRICS
from dmray.reporting.across import aggregate_table, data_sets, improvement_table, results_by_protocol
from dmray.reporting.compared import BOLD_RULE, compare, differences_table, marked
from dmray.reporting.document import Block, Heading, Paragraph, Table, TableCell
from dmray.reporting.results import Comparison, SeedGroup, SweepResults, TrialResult
from dmray.reporting.tables import candidates_of, candidates_over, last_normalized, spread_text

COLUMNS = ("method", "seeds", "normalized", "raw return", "target return")
_SEVERAL = 2


def reevaluation_blocks(results: SweepResults, baseline: str | None = None) -> Iterable[Block]:
    """A section with a table for each data set and protocol; empty without such evaluations."""
    if not results.reevaluated:
        return
    yield Heading("Evaluated again after training", 2)
    yield Paragraph(
        "Stored checkpoints, evaluated by dmray.evaluate without training. Each protocol has its own tables; these "
        "scores are in no other number of this report."
    )
    groups = results_by_protocol(results.reevaluated)
    for protocol, comparisons in groupby(
        sorted(results.reevaluated, key=lambda each: str(each.protocol)), key=lambda each: each.protocol
    ):
        yield Heading(str(protocol), 3)
        for comparison in comparisons:
            yield reevaluation_table(comparison, baseline)
        for group in (each for each in groups if each.protocol == protocol and each.complete):
            if len(group.comparisons) >= _SEVERAL:
                yield aggregate_table(group)
            if compared := compare(candidates_over(group), baseline):
                yield differences_table(compared, data_sets(group), group.slug, group.score_name)
                yield improvement_table(group, [(each.first, each.second) for each in compared])


def reevaluation_table(comparison: Comparison, baseline: str | None = None) -> Table:
    """A row for each method: mean ± deviation over the seeds that were evaluated again; bold as `BOLD_RULE` says."""
    candidates = candidates_of(comparison, last_normalized)
    best = marked(candidates, compare(candidates, baseline))
    rows = tuple(_row(group, group.label in best) for group in comparison.seed_groups)
    return Table(
        f"{comparison.name} ({comparison.protocol}): mean ± std over seeds",
        COLUMNS,
        rows,
        note=BOLD_RULE.format(line="column") if len(rows) > 1 else "",
    )


def reevaluation_columns(results: SweepResults) -> pa.Table:
    """One row for each evaluation that was made after the training (`reevaluations.csv`)."""
    again = [trial for comparison in results.reevaluated for trial in comparison.trials]
    rows = [_values(trial) for trial in again if len(trial.scores)]
    return pa.Table.from_pylist(rows) if rows else pa.table({"trial_id": pa.array([], pa.string())})


def _row(group: SeedGroup, strong: bool) -> tuple[TableCell, ...]:
    normalized = group.spread("last", _normalized)
    targets = {trial.scores.target_return for trial in group.scored}
    shown = ", ".join("-" if target is None else f"{target:g}" for target in sorted(targets, key=str)) or "-"
    return (
        TableCell(group.label),
        TableCell(f"{len(group.scored)} of {len(group.trials)}"),
        TableCell(spread_text(normalized), strong),
        TableCell(spread_text(group.spread("last", lambda score: score.return_mean))),
        TableCell(shown),
    )


def _values(result: TrialResult) -> dict[str, object]:
    score, protocol = next(iter(result.scores)), result.protocol
    return {
        "trial_id": result.trained_as,
        "seed_group_id": result.group_id,
        "dataset": result.trial.dataset.name,
        "protocol": protocol.simulation,
        "method": result.trial.method,
        "seed": result.trial.seed,
        "checkpoint": protocol.reevaluated,
        "step": score.step,
        "decode": protocol.decode,
        "episodes": protocol.episodes,
        "evaluation_seed": protocol.seed,
        "action_noise": protocol.action_noise,
        "observation_noise": protocol.observation_noise,
        "target_return": score.target_return,
        **{name: score.values.get(name) for name in EVALUATION_METRICS},
    }


def _normalized(score: Score) -> float:
    return score.normalized
