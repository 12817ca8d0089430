"""What a sweep's folder says about each trial, and what is to be run: resume is a set difference."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from dmray.errors import StorageError
from dmray.planning.plan import Plan
from dmray.planning.successive_halving import is_stopped
from dmray.planning.trial_filter import ALL_TRIALS, TrialFilter, select_trials
from dmray.records import AttemptFailed, SweepFolder, TrialDone, TrialFolder, read_ledger
from dmray.specs import EarlyStoppingSpec, TrialSpec


class TrialState(StrEnum):
    """Done as a result (finished, diverged), stopped early by a verdict that holds under the sweep's rule, ended by an
    error (failed), begun and not ended (started), or new."""

    FINISHED = "finished"
    DIVERGED = "diverged"
    STOPPED = "stopped"
    FAILED = "failed"
    STARTED = "started"
    NEW = "new"


DONE = frozenset({TrialState.FINISHED, TrialState.DIVERGED})
ENDED = DONE | {TrialState.STOPPED}  # nothing is left to be run


def trial_states(plan: Plan, folder: SweepFolder) -> dict[str, TrialState]:
    """The state of each trial of `plan`, by trial id."""
    rule = plan.sweep.early_stopping
    return {trial.trial_id: trial_state(trial, folder.trial(trial.trial_id), rule) for trial in plan.trials}


def trial_state(trial: TrialSpec, folder: TrialFolder, rule: EarlyStoppingSpec | None = None) -> TrialState:
    """Read from the done marker, else from the ledger's last word."""
    if folder.done.exists():
        return TrialState(TrialDone.model_validate_json(folder.done.read_bytes()).status)
    records = read_ledger(folder.ledger)
    if not records:
        return TrialState.NEW
    if is_stopped(records[-1], trial, rule):
        return TrialState.STOPPED
    return TrialState.FAILED if isinstance(records[-1], AttemptFailed) else TrialState.STARTED


def to_run(
    plan: Plan, states: Mapping[str, TrialState], resume: bool, choice: TrialFilter = ALL_TRIALS
) -> tuple[TrialSpec, ...]:
    """The trials of `choice` that have not ended, in the plan's order; with `retry_failed`, only those that failed.

    Raises:
        SpecError: the choice is not well formed or names no trial.
        StorageError: trials were begun before and neither `resume` nor `retry_failed` was asked for.
    """
    wanted = select_trials(plan, choice)
    if choice.retry_failed:
        return tuple(trial for trial in wanted if states[trial.trial_id] is TrialState.FAILED)
    todo = tuple(trial for trial in wanted if states[trial.trial_id] not in ENDED)
    begun = [trial for trial in todo if states[trial.trial_id] is not TrialState.NEW]
    if begun and not resume:
        raise StorageError(
            f"sweep '{plan.sweep.name}' was begun before: {len(wanted) - len(todo)} trials are done, "
            f"{len(begun)} are not; continue with --resume (or --retry-failed for those that failed alone), "
            "or choose another folder with --storage"
        )
    return todo


def failures(plan: Plan, folder: SweepFolder) -> dict[str, str]:
    """The first line of the error of each failed trial, by trial id."""
    last = {
        trial_id: records[-1]
        for trial_id in plan.trial_ids
        if not folder.trial(trial_id).done.exists() and (records := read_ledger(folder.trial(trial_id).ledger))
    }
    return {trial_id: record.error for trial_id, record in last.items() if isinstance(record, AttemptFailed)}
