"""The status of a trial: one fold of its ledger, which every view of a sweep asks.

What is left to run, `dmray.status`, the progress view, the report and MLflow all take a trial's records into a
`TrialHistory` and read its `status`. A ledger cannot tell whether a worker is alive: its last word is that an attempt
`started`. Whether that attempt is running is known where a driver's heartbeat is known: `with_liveness`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dmray.errors import StorageError
from dmray.planning.plan import Plan
from dmray.planning.successive_halving import decision_holds
from dmray.planning.trial_filter import ALL_TRIALS, TrialFilter, select_trials
from dmray.records import (
    AttemptFailed,
    AttemptStarted,
    LedgerTail,
    LightRecord,
    ResultIdentity,
    RungDecision,
    Score,
    SweepFolder,
    TrainProgress,
    TrialDone,
    TrialFolder,
    TrialStopped,
    changed_since_done,
    identity_of,
    read_done_marker,
    write_done_marker,
)
from dmray.records.identity import joined
from dmray.records.ledger import read_end, warn_once
from dmray.registry import short_repr
from dmray.specs import EarlyStoppingSpec, TrialSpec

_log = logging.getLogger(__name__)


class TrialStatus(StrEnum):
    """What a trial's ledger says.

    Waiting: it has no record. Started: an attempt began and has not said how it ended; it runs, or was killed. Paused:
    the last attempt saved its state and ended, for a pause of the sweep, or by a decision of early stopping that does
    not hold any more; or the trial has the records of a shorter one and goes on from there. Stopped early: early
    stopping ended it, and the decision holds under the sweep's rule. Failed: the last attempt ended with an exception,
    or its records are damaged. Finished and diverged are results.
    """

    WAITING = "waiting"
    STARTED = "started"
    PAUSED = "paused"
    STOPPED_EARLY = "stopped_early"
    FAILED = "failed"
    FINISHED = "finished"
    DIVERGED = "diverged"

    @property
    def label(self) -> str:
        """For people."""
        return self.value.replace("_", " ")


_RESULTS = frozenset({"train", "evaluation", "done"})
RUNNING, INTERRUPTED = "running", "interrupted"  # what `with_liveness` makes of STARTED
DONE = frozenset({TrialStatus.FINISHED, TrialStatus.DIVERGED})  # results
ENDED = DONE | {TrialStatus.STOPPED_EARLY}  # nothing is left to run


def with_liveness(status: TrialStatus, alive: bool) -> str:
    """`status`, with `running` or `interrupted` for an attempt that started; `alive`: somebody works on the trial."""
    if status is TrialStatus.STARTED:
        return RUNNING if alive else INTERRUPTED
    return status.value


@dataclass
class TrialHistory:
    """What the records of a trial say, one by one in the order of the ledger.

    Works on the end of a ledger too: `status` and what is named last are then those of the whole ledger.

    Attributes:
        rule: The sweep's early stopping as it is now.
        step: The highest step of any record.
        attempts: How many attempts began.
        last_attempt, last_failure, last_training: The last record of the kind.
        scores: The first evaluation of each step.
        decisions: Early stopping's first decision at each rung.
        evaluated_step: The last step whose evaluation is recorded or was skipped.
        done: How it ended as a result; the first such record counts.
        last: The last record.
        extended_from: The ids of the shorter trials whose records it begins with.
        inherited_scores, inherited_attempts: How many of `scores` and `attempts` are from these.
        identities: What its scores and weights depend on: of the attempts that left records of training or evaluation.
        damage: Why its records cannot be read to the end, in a sentence; it has failed then, whatever they say.
    """

    trial: TrialSpec
    rule: EarlyStoppingSpec | None = None
    step: int = 0
    attempts: int = 0
    last_attempt: AttemptStarted | None = None
    last_failure: AttemptFailed | None = None
    last_training: TrainProgress | None = None
    scores: dict[int, Score] = field(default_factory=dict)
    decisions: dict[int, RungDecision] = field(default_factory=dict)
    evaluated_step: int = 0
    done: TrialDone | None = None
    last: LightRecord | None = None
    extended_from: list[str] = field(default_factory=list)
    inherited_scores: int = 0
    inherited_attempts: int = 0
    identities: dict[ResultIdentity, None] = field(default_factory=dict)
    _begun: AttemptStarted | None = None  # an attempt that left no record of training or evaluation so far
    damage: str | None = None

    def take(self, record: LightRecord) -> None:
        """Take the next record in."""
        self.last = record
        if self._begun is not None and record.kind in _RESULTS:
            self.identities[identity_of(self.trial, self._begun.provenance)] = None
            self._begun = None
        if record.kind == "train":
            self.last_training = record
        elif record.kind == "evaluation":
            if record.step not in self.scores:
                self.scores[record.step] = Score.of(record)
            self.evaluated_step = max(self.evaluated_step, record.step)
        elif record.kind == "attempt":
            if record.trial_id != self.trial.trial_id and self.damage is None:
                self.damage = _records_of_another(self.trial, record)
            self._begun = record
            self.last_attempt, self.attempts = record, max(self.attempts + 1, record.attempt)
            self.step = max(self.step, record.from_step)
            return
        elif record.kind == "started_over":
            self._forget_results()
            return
        elif record.kind == "extended":
            self.extended_from.append(record.trial_id)
            self.inherited_scores, self.inherited_attempts = len(self.scores), self.attempts
        elif record.kind == "failure":
            self.last_failure = record
        elif record.kind == "rung":
            self.decisions.setdefault(record.step, record)
        elif record.kind == "skipped":
            self.evaluated_step = max(self.evaluated_step, record.step)
        elif record.kind == "done":
            self.done = self.done or record
        if record.step > self.step:
            self.step = record.step

    def _forget_results(self) -> None:
        self.step, self.evaluated_step, self.last_training, self.done = 0, 0, None, None
        self.inherited_scores = 0
        self.scores.clear()
        self.decisions.clear()
        self.identities.clear()

    @property
    def status(self) -> TrialStatus:
        """Damaged records are a failure; a result stands; else the last record decides."""
        if self.damage is not None:
            return TrialStatus.FAILED
        if self.done is not None:
            return TrialStatus(self.done.status)
        if self.last is None:
            return TrialStatus.WAITING
        if self.last.kind == "stopped":
            return TrialStatus.STOPPED_EARLY if self.stopped is not None else TrialStatus.PAUSED
        if self.last.kind in ("paused", "extended"):
            return TrialStatus.PAUSED
        return TrialStatus.FAILED if self.last.kind == "failure" else TrialStatus.STARTED

    @property
    def stopped(self) -> TrialStopped | None:
        """The record by which early stopping ended it, if that decision holds under the sweep's rule as it is now."""
        last = self.last
        if self.done is None and last is not None and last.kind == "stopped":
            return last if decision_holds(self.rule, self.trial, last.decision) else None
        return None

    @property
    def end_step(self) -> int:
        """The step that it is to reach, or ended at."""
        if self.done is not None:
            return self.done.step
        return self.stopped.step if self.stopped is not None else self.trial.training.steps

    @property
    def error(self) -> str | None:
        """The damage, or the first line of the last failure; None once there is a result."""
        if self.damage is not None:
            return self.damage
        return self.last_failure.error if self.last_failure is not None and self.done is None else None

    @property
    def provenance(self) -> dict[str, Any]:
        """Of the last attempt; empty before the first."""
        return self.last_attempt.provenance if self.last_attempt is not None else {}

    @property
    def identity(self) -> ResultIdentity | None:
        """Of all attempts that left records, joined; of the last attempt if none did; None before the first.

        Only for the whole ledger.
        """
        if self.identities:
            return joined(self.identities)
        return identity_of(self.trial, self.last_attempt.provenance) if self.last_attempt is not None else None

    @property
    def last_score(self) -> Score | None:
        """The last evaluation that was recorded, over whatever episodes."""
        return self.scores[max(self.scores)] if self.scores else None


def _records_of_another(trial: TrialSpec, record: AttemptStarted) -> str:
    return (
        f"the ledger of {trial.trial_id} has records of another trial, {short_repr(record.trial_id)}; restore it from "
        "a copy, or delete the trial's folder to run the trial again"
    )


def read_history(folder: TrialFolder, trial: TrialSpec, rule: EarlyStoppingSpec | None = None) -> TrialHistory:
    """The history by the whole ledger. Raises nothing because of what stands in the folder: see `damage`.

    A ledger that was changed after the trial's end is damage too, though each line is a record.
    """
    history = _read(TrialHistory(trial, rule), folder, lambda: LedgerTail(folder.ledger, light=True))
    if history.done is not None and history.damage is None:
        with contextlib.suppress(StorageError):  # told by the next reader: it could be read a moment before
            history.damage = changed_since_done(folder)
    return history


def confirmed_end(folder: TrialFolder) -> TrialDone | None:
    """The end of a trial that the done marker tells and the ledger's last record confirms: cheap to read."""
    marker = read_done_marker(folder)
    with contextlib.suppress(StorageError):  # told by whoever reads the ledger
        return marker.end if marker is not None and marker.end == read_end(folder.ledger) else None
    return None


def trial_statuses(plan: Plan, folder: SweepFolder) -> dict[str, TrialStatus]:
    """The status of each trial of `plan`, by trial id."""
    rule = plan.sweep.early_stopping
    return {trial.trial_id: trial_status(trial, folder.trial(trial.trial_id), rule) for trial in plan.trials}


def trial_status(trial: TrialSpec, folder: TrialFolder, rule: EarlyStoppingSpec | None = None) -> TrialStatus:
    """By the end of the ledger: the status alone needs no more."""
    return _recent_history(trial, folder, rule).status


def failures(plan: Plan, folder: SweepFolder) -> dict[str, str]:
    """The first line of the error of each failed trial, by trial id."""
    histories = [_recent_history(trial, folder.trial(trial.trial_id)) for trial in plan.trials]
    return {
        history.trial.trial_id: history.error
        for history in histories
        if history.status is TrialStatus.FAILED and history.error is not None
    }


def to_run(
    plan: Plan,
    statuses: Mapping[str, TrialStatus],
    resume: bool,
    trial_filter: TrialFilter = ALL_TRIALS,
    extended: Collection[str] = (),
) -> tuple[TrialSpec, ...]:
    """The selected trials that have not ended, in the plan's order; with `retry_failed`, only those that failed.

    `extended`: the ids of trials that continue a shorter one (`dmray.progress.extensions`).

    Raises:
        SpecError: `trial_filter` is malformed or matches no trial.
        StorageError: trials were started before, or continue a shorter one, and neither `resume` nor `retry_failed` is
            given.
    """
    wanted = select_trials(plan, trial_filter)
    if trial_filter.retry_failed:
        return tuple(trial for trial in wanted if statuses[trial.trial_id] is TrialStatus.FAILED)
    todo = tuple(trial for trial in wanted if statuses[trial.trial_id] not in ENDED)
    begun = [trial for trial in todo if statuses[trial.trial_id] is not TrialStatus.WAITING]
    if begun and not resume:
        raise StorageError(
            f"sweep '{plan.sweep.name}' was started before: {len(wanted) - len(todo)} of {len(wanted)} trials are "
            "done; continue with --resume (or --retry-failed for the failed trials only), or choose another folder "
            "with --storage"
        )
    longer = [trial for trial in todo if trial.trial_id in extended]
    if longer and not resume:
        raise StorageError(
            f"sweep '{plan.sweep.name}' was run before with fewer training steps: {len(longer)} trials can go on to "
            f"step {max(trial.training.steps for trial in longer):,}; do that with --resume, or train all from step 0 "
            "in another folder with --storage"
        )
    return todo


def in_other_shards(
    plan: Plan, statuses: Mapping[str, TrialStatus], trial_filter: TrialFilter
) -> tuple[TrialSpec, ...]:
    """The trials that were begun here and have not ended, but are not in the shard that is to run.

    Another shard was run here, or the sweep file has changed, and with it the shards.
    """
    if trial_filter.shard is None:
        return ()
    here = {trial.trial_id for trial in select_trials(plan, TrialFilter(shard=trial_filter.shard))}
    over = ENDED | {TrialStatus.WAITING}
    return tuple(trial for trial in plan.trials if trial.trial_id not in here and statuses[trial.trial_id] not in over)


def moved_text(moved: Sequence[TrialSpec], trial_filter: TrialFilter) -> str:
    """A sentence on the result of `in_other_shards`, with the command that continues these trials here."""
    names = ", ".join(trial.trial_id for trial in moved[:3]) + (", ..." if len(moved) > 3 else "")
    return (
        f"--shard {trial_filter.shard}: trials that were begun here are in other shards ({len(moved)}: {names}); if "
        "the sweep file has changed since, continue them here with --resume --only trial=... and without --shard, or "
        "the other shards run them from the start"
    )


def restore_done_markers(plan: Plan, folder: SweepFolder) -> None:
    """Write done markers that are missing or damaged although the ledger has the end of the trial.

    This happens if the worker is killed between the two writes. A marker that cannot be written stays as it is, with a
    warning: the ledger decides.
    """
    for trial in plan.trials:
        files = folder.trial(trial.trial_id)
        if _recent_history(trial, files).done is None or read_done_marker(files) is not None:
            continue
        history = read_history(files, trial)
        if history.done is not None and history.damage is None:
            try:
                write_done_marker(files, trial.trial_id, history.done)
            except (OSError, StorageError) as cause:
                _log.warning("%s: cannot be written (%s); the ledger has the end of the trial", files.done, cause)


def _recent_history(trial: TrialSpec, folder: TrialFolder, rule: EarlyStoppingSpec | None = None) -> TrialHistory:
    history = TrialHistory(trial, rule)
    if (end := confirmed_end(folder)) is not None:
        history.take(end)
        return history
    _read(history, folder, lambda: LedgerTail.near_end(folder.ledger, light=True))
    if history.done is not None and history.attempts == 0:  # no marker confirms the end: is it that of this trial?
        return read_history(folder, trial, rule)
    return history


def _read(history: TrialHistory, folder: TrialFolder, tail: Callable[[], LedgerTail]) -> TrialHistory:
    try:
        for record in tail().records():
            history.take(record)
    except FileNotFoundError:
        pass
    except StorageError as damage:
        history.damage = str(damage)
    if history.done is None and history.damage is None and (marker := read_done_marker(folder)) is not None:
        warn_once(
            f"{folder.done}: says that the trial {marker.status} at step {marker.step:,}, but its ledger has no end, "
            "so results are missing; the ledger decides, and --resume continues the trial"
        )
    return history
