"""The scores of an exported policy as its trial's ledger and its sweep's report have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dmray.errors import StorageError
from dmray.inference import Policy
from dmray.records import (
    AttemptStarted,
    EvaluationDone,
    Score,
    SweepFolder,
    TrialDone,
    TrialFolder,
    best_score,
    distinct,
    last_score,
    read_ledger,
)
from dmray.reporting import SeedGroup, collect
from dmray.reporting.aggregates import Estimate, estimate, iqm, mean
from dmray.tasks import Task

LAST, BEST, OTHER = "last (weights after the last step)", "best (highest during training)", "during training"


@dataclass(frozen=True)
class TrialScore:
    """A score of one trial. `normalized`: the mean over the episodes of its first target return, with its interval."""

    name: str
    step: int
    normalized: Estimate
    return_mean: float
    target_return: float | None


@dataclass(frozen=True)
class PolicyScores:
    """What the records say. `missing`: why there are no scores, or not all, in a sentence; empty if there are.

    `group`: the seeds of the same setting; None where the sweep is not at hand. `provenance`: of the last attempt.
    """

    of_trial: tuple[TrialScore, ...] = ()
    group: SeedGroup | None = None
    provenance: Mapping[str, Any] | None = None
    missing: str = ""

    @property
    def of_seeds(self) -> dict[str, np.ndarray]:
        """The normalized scores of the group's seeds, as the report counts them, by which score it is."""
        trials = self.group.scored if self.group is not None else ()
        last = [trial.last.normalized for trial in trials if trial.last]
        best = [trial.best.normalized for trial in trials if trial.best]
        return {name: np.array(scores) for name, scores in ((LAST, last), (BEST, best)) if scores}


def scores_of(policy: Policy) -> PolicyScores:
    """The scores of a policy's trial, and of the other seeds of its sweep.

    Raises:
        StorageError: the trial's ledger is damaged.
    """
    trial = None if policy.folder is None else TrialFolder(policy.folder)
    if trial is None or not trial.ledger.is_file():
        return PolicyScores(missing="The trial's records were not at hand when the policy was exported.")
    records = distinct(read_ledger(trial.ledger))
    attempts = [record for record in records if isinstance(record, AttemptStarted)]
    if not attempts or attempts[-1].trial_id != policy.trial.trial_id:
        return PolicyScores(missing="The records beside the checkpoint are of another trial.")
    evaluations = {record.step: record for record in records if isinstance(record, EvaluationDone)}
    scores = [Score.of(record) for record in evaluations.values()]
    named: dict[str, Score | None] = {}
    if any(isinstance(record, TrialDone) and record.status == "finished" for record in records):
        named = {LAST: last_score(scores), BEST: best_score(scores)}
    of_trial = [_trial_score(name, evaluations[score.step], policy.task) for name, score in named.items() if score]
    if policy.step in evaluations and policy.step not in [score.step for score in of_trial]:
        of_trial.append(_trial_score(OTHER, evaluations[policy.step], policy.task))
    return PolicyScores(
        tuple(of_trial),
        _group_of(policy, trial),
        attempts[-1].provenance,
        "" if named else "The trial has not finished, so it has neither a last nor a best score.",
    )


def _trial_score(name: str, record: EvaluationDone, task: Task) -> TrialScore:
    first = record.first_target
    normalized = np.array([task.reference.normalize(each) for each in first.returns])
    return TrialScore(name, record.step, estimate([normalized], mean), first.return_mean, first.target_return)


def _group_of(policy: Policy, trial: TrialFolder) -> SeedGroup | None:
    if trial.path.parent.name != "trials":
        return None
    sweep = SweepFolder(trial.path.parent.parent.parent, trial.path.parent.parent.name)
    try:
        results = collect(sweep)
    except StorageError:  # a copy of a trial without its sweep
        return None
    groups = [each for comparison in results.comparisons for each in comparison.seed_groups]
    return next((each for each in groups if policy.trial in [result.trial for result in each.trials]), None)


def interval_over_seeds(scores: np.ndarray) -> Estimate:
    """The report's interquartile mean over seeds."""
    return estimate([scores], iqm)
