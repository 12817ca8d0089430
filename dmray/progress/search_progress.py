"""The progress of a search, read from the ledgers of its trials."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal, TypeVar

from dmray.errors import SpecError
from dmray.planning.plan import Plan, plan
from dmray.planning.search import GroupResult, group_results
from dmray.planning.search_space import OPEN, Outcome, OutcomeOf, groups_of
from dmray.planning.settings import cells_of
from dmray.planning.trial_filter import TrialFilter
from dmray.progress.trial_status import TrialStatus, read_history
from dmray.records import SweepFolder
from dmray.records.scores import Score, best_score, last_score
from dmray.specs import SweepSpec, TrialSpec
from dmray.tasks import task_of

P = TypeVar("P", bound=Plan)
_GROUP_KEYS = {"per_dataset": ("method", "dataset", "task"), "overall": ("method",)}


def grown(planned: P, folder: SweepFolder) -> P:
    """`planned` with all trials that follow from the records so far; unchanged without a search."""
    if planned.sweep.search is None:
        return planned
    found = plan(planned.sweep, outcomes_in(planned.sweep, folder))
    return replace(planned, trials=found.trials, search=found.search)


def outcomes_in(sweep: SweepSpec, folder: SweepFolder) -> OutcomeOf:
    """Reads the outcome of a selection trial from its ledger, each once."""
    known: dict[str, Outcome] = {}
    assert sweep.search is not None
    by = sweep.search.by

    def outcome_of(trial: TrialSpec) -> Outcome:
        if trial.trial_id not in known:
            history = read_history(folder.trial(trial.trial_id), trial, sweep.early_stopping_of(trial))
            known[trial.trial_id] = outcome(history.status, history.scores.values(), by)
        return known[trial.trial_id]

    return outcome_of


def outcome(status: TrialStatus, scores: Collection[Score], by: Literal["last", "best"]) -> Outcome:
    """What a trial with these evaluations says about its setting."""
    curve = {score.step: score.normalized for score in sorted(scores, key=lambda score: score.step) if not score.quick}
    if status is TrialStatus.FINISHED:
        score = last_score(scores) if by == "last" else best_score(scores)
        return Outcome("finished", score.normalized, curve) if score is not None else Outcome("failed", None, curve)
    if status is TrialStatus.STOPPED_EARLY:
        return Outcome("stopped", None, curve)
    failed = status in (TrialStatus.FAILED, TrialStatus.DIVERGED)
    return Outcome("failed", None, curve) if failed else OPEN


def results_of_search(planned: Plan, outcome_of: OutcomeOf) -> list[GroupResult]:
    """How far each group of the search is, by the trials of a manifest."""
    sweep = planned.sweep
    assert sweep.search is not None
    groups = groups_of(sweep.search, cells_of(sweep, [task_of(dataset) for dataset in sweep.datasets]))
    return group_results(sweep, sweep.search, groups, planned.trials, outcome_of)


def awaits_trials(planned: Plan, statuses: Mapping[str, TrialStatus]) -> bool:
    """Whether a driver ended between two rounds of a search: what follows from the trials so far is not planned yet.

    By the statuses of the manifest's trials alone, so the ends of their ledgers suffice.
    """
    if planned.sweep.search is None:
        return False
    reported = {(trial.method, trial.dataset.name) for trial in planned.trials if not planned.sweep.is_selection(trial)}

    def outcome_of(trial: TrialSpec) -> Outcome:
        status = statuses[trial.trial_id]
        return Outcome("finished", 0.0) if status is TrialStatus.FINISHED else outcome(status, (), "last")

    def awaits(result: GroupResult) -> bool:
        if not result.over:
            return all(tried.outcome.state != "open" for tried in result.tried)
        return result.chosen is not None and (result.group.method, result.group.datasets[0]) not in reported

    return any(map(awaits, results_of_search(planned, outcome_of)))


def check_filter(sweep: SweepSpec, trial_filter: TrialFilter) -> None:
    """Refuse to run a part of a search whose scores do not suffice to choose a setting.

    Raises:
        SpecError: a shard; or `--only` with a key that does not select whole groups.
    """
    if sweep.search is None:
        return
    if trial_filter.shard is not None:
        raise SpecError(
            f"--shard {trial_filter.shard}: the rounds of a search need the scores of all trials; use --only with the "
            f"keys {', '.join(_GROUP_KEYS[sweep.search.choose])} to divide the sweep"
        )
    keys = _GROUP_KEYS[sweep.search.choose]
    for term in (trial_filter.only or "").split(","):
        key = term.partition("=")[0].strip()
        if key and key not in keys:
            raise SpecError(
                f"--only {trial_filter.only}: a search with choose {sweep.search.choose} can be run in parts by "
                f"{', '.join(keys)}, not by {key}: a setting is chosen by all of its trials"
            )
