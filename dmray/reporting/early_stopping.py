"""The report's section on early stopping: which trials competed, how many were stopped at which rung, steps saved."""

from __future__ import annotations

from collections.abc import Iterable

from dmray.reporting.document import Block, Bullets, Heading, Table, TableCell
from dmray.reporting.results import SweepResults
from dmray.specs import EarlyStoppingSpec

_COMPETITORS = {
    "method": "the trials of one data set, method and seed",
    "dataset": "the trials of one data set and seed (of all methods)",
}


def early_stopping_blocks(results: SweepResults) -> Iterable[Block]:
    """The section on early stopping; empty if no sweep has a rule and no trial has a decision."""
    if not results.early_stopping and not any(trial.decisions for trial in results.trials):
        return
    yield Heading("Early stopping", 2)
    yield Bullets((*map(_rule, results.early_stopping.values()), *_effect(results)))
    if any(trial.decisions for trial in results.trials):
        yield _rungs(results)


def _rule(rule: EarlyStoppingSpec) -> str:
    eta = rule.reduction_factor
    return (
        f"Successive halving (ASHA): the first rung is step {rule.grace_steps:,}, each further rung is {eta} times the "
        f"previous one. At a rung, among {_COMPETITORS[rule.within]}, a trial continues if its score is among the best "
        f"1/{eta} of the scores known so far."
    )


def _effect(results: SweepResults) -> Iterable[str]:
    stopped = [trial for trial in results.trials if trial.stopped_by]
    total = sum(trial.trial.training.steps for trial in results.trials)
    saved = sum(trial.trial.training.steps - trial.steps for trial in stopped)
    yield (
        f"{len(stopped)} of {len(results.trials)} trials were stopped. This saved {saved:,} of {total:,} optimizer "
        f"steps ({saved / max(total, 1):.0%})."
    )
    if any(not trial.is_selection for trial in stopped):
        seed_groups = [each for comparison in results.comparisons for each in comparison.seed_groups]
        out = sum(each.stopped for each in seed_groups)
        yield (
            f"{out} of {len(seed_groups)} rows have seeds that were stopped. Such a row has no mean score, is not "
            "compared and is not in aggregates: its other seeds continued because they were better (survivorship bias)."
        )
    yield "A later trial is compared with more scores, so with another order of trials other trials may be stopped."
    if results.early_stopping and results.early_stopping.keys() <= {each.sweep.name for each in results.searches}:
        yield "Only selection trials of the search compete, so no score of a row below was selected by early stopping."
    else:
        yield (
            "A row whose seeds all continued was selected by its scores during training, which is slightly optimistic."
        )


def _rungs(results: SweepResults) -> Table:
    steps = sorted({decision.step for trial in results.trials for decision in trial.decisions})
    rows = []
    for step in steps:
        compared = sum(each.step == step for trial in results.trials for each in trial.decisions)
        stopped = [trial for trial in results.trials if trial.stopped_by and trial.stopped_by.step == step]
        saved = sum(trial.trial.training.steps - trial.steps for trial in stopped)
        rows.append(
            (
                TableCell(f"step {step:,}"),
                TableCell(str(compared)),
                TableCell(str(len(stopped))),
                TableCell(f"{saved:,}"),
            )
        )
    return Table("Trials by rung", ("rung", "compared", "stopped", "steps saved"), tuple(rows), name="rungs")
