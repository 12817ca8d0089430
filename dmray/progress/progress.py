"""The progress and the speed of a sweep, from its ledgers alone; only what has grown is read again."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from dmray.errors import StorageError
from dmray.planning.cost import trial_flops
from dmray.progress.trial_status import DONE, TrialHistory, TrialStatus, confirmed_end
from dmray.records import LedgerTail, LightRecord, SweepFolder, TrialDone, TrialFolder, read_done_marker
from dmray.specs import EarlyStoppingSpec, TrialSpec

RATE_WINDOW_S = 600.0  # long enough for a few records of slow trials
_TO_CONTINUE = (TrialStatus.WAITING, TrialStatus.STARTED, TrialStatus.PAUSED)
_COUNT_STEPS = ("train", "failure", "paused", "stopped", "done")  # records that tell of steps which were just done


class Rates(NamedTuple):
    """Over the last ten minutes, or since the first record if that is less; `work` is in FLOPs."""

    steps_per_s: float = 0.0
    evaluations_per_h: float = 0.0
    work_per_s: float = 0.0


class _Move(NamedTuple):
    time_s: float
    steps: int
    evaluations: int
    work: float


@dataclass
class SweepProgress:
    """All trials, and their recent steps and evaluations by the times in their records."""

    trials: dict[str, TrialHistory]
    _work: dict[str, float]
    _moves: deque[_Move] = field(default_factory=deque)

    @classmethod
    def of(cls, trials: Iterable[TrialSpec], early_stopping: EarlyStoppingSpec | None = None) -> SweepProgress:
        specs = {trial.trial_id: trial for trial in trials}
        work = {trial_id: trial_flops(trial) / trial.training.steps for trial_id, trial in specs.items()}
        return cls({trial_id: TrialHistory(trial, early_stopping) for trial_id, trial in specs.items()}, work)

    def take(self, trial_id: str, records: Iterable[LightRecord]) -> None:
        """Take new records of one trial in."""
        history = self.trials[trial_id]
        for record in records:
            if record.kind == "started_over":
                history.take(record)
                continue
            before = None if history.last is None else history.step
            history.take(record)
            counts = before is not None and record.kind in _COUNT_STEPS  # else the reading begins in mid-ledger
            steps = history.step - before if counts and before is not None else 0
            evaluations = int(record.kind == "evaluation")
            self._moves.append(_Move(record.time_s, steps, evaluations, steps * self._work[trial_id]))

    def forget(self, trial_id: str, damage: str | None) -> None:
        """Drop what was read of one trial: its ledger cannot be read (`damage` says why), or is read anew."""
        before = self.trials[trial_id]
        self.trials[trial_id] = TrialHistory(before.trial, before.rule, damage=damage)

    @property
    def steps(self) -> int:
        return sum(history.step for history in self.trials.values())

    @property
    def total_steps(self) -> int:
        return sum(history.end_step for history in self.trials.values())

    def rates(self, now_s: float) -> Rates:
        """By `now_s`, seconds since the epoch."""
        self._moves = deque(move for move in self._moves if abs(now_s - move.time_s) <= RATE_WINDOW_S)
        if not self._moves:
            return Rates()
        times = [move.time_s for move in self._moves]  # of other machines' clocks, which may be ahead of ours
        span = max(max(now_s, *times) - min(times), 1e-3)
        steps, evaluations, work = (sum(column) for column in list(zip(*self._moves, strict=True))[1:])
        return Rates(steps / span, 3600 * evaluations / span, work / span)

    def work_left(self) -> float:
        """FLOPs that remain of trials to be run or continued; a step of a larger network counts for more."""
        going = [(name, history) for name, history in self.trials.items() if history.status in _TO_CONTINUE]
        return sum(self._work[name] * max(0, history.end_step - history.step) for name, history in going)


def pending_evaluations(history: TrialHistory) -> int:
    """Evaluations of a started trial that are due by its step, and neither recorded nor skipped."""
    every = history.trial.evaluation.every_steps
    due = history.step // every - history.evaluated_step // every
    return max(0, due) if history.status is TrialStatus.STARTED else 0


def done_long_ago(trial: TrialFolder) -> TrialDone | None:
    """The marker of a trial whose end says nothing about speed any more, so only the end of its ledger is read."""
    done = read_done_marker(trial)
    return done if done is not None and time.time() - done.time_s > RATE_WINDOW_S else None


class Follower:
    """Keeps a `SweepProgress` up to date with the ledgers of a sweep's folder."""

    def __init__(
        self,
        folder: SweepFolder,
        trials: Iterable[TrialSpec],
        early_stopping: EarlyStoppingSpec | None = None,
        *,
        whole: bool = False,
    ) -> None:
        """`whole`: ledgers of trials that have not ended are read from their beginning, which tells all scores."""
        self.folder, self.progress, self._whole = folder, SweepProgress.of(trials, early_stopping), whole
        self.begun: frozenset[str] = frozenset()  # the trials that have a folder
        self._tails: dict[str, LedgerTail] = {}
        self._open = list(self.progress.trials)

    def update(self) -> SweepProgress:
        """Read what is new. The first time: the ends of the ledgers, and markers of trials that were done long ago."""
        self.begun = self._begun()
        for trial_id in [name for name in self._open if name in self.begun]:
            try:
                self.progress.take(trial_id, self._new_records(trial_id))
            except StorageError as damage:  # one bad folder does not hide the others; it is read anew the next time
                self._tails.pop(trial_id, None)
                self.progress.forget(trial_id, str(damage))
        trials = self.progress.trials
        self._open = [name for name in self._open if trials[name].status not in DONE]
        return self.progress

    def _begun(self) -> frozenset[str]:
        try:
            return frozenset(os.listdir(self.folder.path / "trials"))
        except FileNotFoundError:
            return frozenset()
        except OSError as cause:
            raise StorageError(f"{self.folder.path / 'trials'}: cannot be read ({cause.strerror})") from cause

    def _new_records(self, trial_id: str) -> list[LightRecord]:
        trial = self.folder.trial(trial_id)
        tail = self._tails.get(trial_id)
        if tail is not None:
            return tail.read()
        if done_long_ago(trial) is not None and (end := confirmed_end(trial)) is not None:
            return [end]
        try:
            begin = LedgerTail if self._whole and trial.ledger.exists() else LedgerTail.near_end
            tail = begin(trial.ledger, light=True)
        except FileNotFoundError:
            return []
        self.progress.forget(trial_id, None)
        self._tails[trial_id] = tail
        return tail.read()
