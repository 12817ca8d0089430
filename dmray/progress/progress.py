"""How far a sweep is, from its ledgers alone; only what has grown is read again."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from dmray.planning.cost import trial_flops
from dmray.planning.successive_halving import is_stopped
from dmray.records import (
    AttemptFailed,
    AttemptPaused,
    AttemptStarted,
    EvaluationDone,
    EvaluationSkipped,
    LedgerRecord,
    LedgerTail,
    SweepFolder,
    TrainProgress,
    TrialDone,
    TrialFolder,
    TrialStopped,
)
from dmray.specs import EarlyStoppingSpec, TrialSpec

RATE_WINDOW_S = 600.0  # long enough for a few records of slow trials
STATES = ("waiting", "running", "left", "failed", "stopped", "finished", "diverged")


@dataclass
class TrialProgress:
    """One trial as its ledger tells it; `state` is one of `STATES`."""

    trial: TrialSpec
    early_stopping: EarlyStoppingSpec | None = None
    state: str = "waiting"
    step: int = 0
    loss: float | None = None
    score: float | None = None
    steps_per_s: float = 0.0
    evaluated: int = 0  # the last step whose evaluation is recorded, or left out
    error: str | None = None

    def advance(self, record: LedgerRecord) -> None:
        """Take one record in."""
        match record:
            case AttemptStarted():
                self.state, self.step = "running", max(self.step, record.from_step)
            case TrainProgress():
                self.step, self.loss, self.steps_per_s = max(self.step, record.step), record.loss, record.steps_per_s
            case EvaluationDone():
                self.score, self.evaluated = record.headline.normalized_mean, max(self.evaluated, record.step)
            case EvaluationSkipped():
                self.evaluated = max(self.evaluated, record.step)
            case AttemptFailed():
                self.state, self.error = "failed", record.error
            case AttemptPaused():
                self.state, self.step = "left", max(self.step, record.step)
            case TrialStopped():
                self.state = "stopped" if is_stopped(record, self.trial, self.early_stopping) else "left"
                self.step = max(self.step, record.step)
            case TrialDone():
                self.state, self.step = record.status, self.trial.training.steps
        if self.state == "waiting":  # the reading began behind the attempt's start
            self.state = "running"

    @property
    def steps(self) -> int:
        """The steps that it is to reach."""
        return self.step if self.state == "stopped" else self.trial.training.steps

    @property
    def pending_evaluations(self) -> int:
        """Evaluations that are due by the step that is recorded, and are not recorded."""
        every = self.trial.evaluation.every_steps
        return max(0, self.step // every - self.evaluated // every) if self.state == "running" else 0


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
    """All trials, and what they did of late by the clocks of their own records."""

    trials: dict[str, TrialProgress]
    _work: dict[str, float]
    _moves: deque[_Move] = field(default_factory=deque)

    @classmethod
    def of(cls, trials: Iterable[TrialSpec], early_stopping: EarlyStoppingSpec | None = None) -> SweepProgress:
        specs = {trial.trial_id: trial for trial in trials}
        work = {trial_id: trial_flops(trial) / trial.training.steps for trial_id, trial in specs.items()}
        return cls({trial_id: TrialProgress(trial, early_stopping) for trial_id, trial in specs.items()}, work)

    def take(self, trial_id: str, records: Iterable[LedgerRecord]) -> None:
        """Take new records of one trial in."""
        trial = self.trials[trial_id]
        for record in records:
            before = None if trial.state == "waiting" else trial.step
            trial.advance(record)
            reached = record.step if isinstance(record, TrainProgress | AttemptPaused | TrialStopped | TrialDone) else 0
            steps = max(0, reached - before) if before is not None else 0
            evaluations = int(isinstance(record, EvaluationDone))
            self._moves.append(_Move(record.time_s, steps, evaluations, steps * self._work[trial_id]))

    @property
    def steps(self) -> int:
        return sum(trial.step for trial in self.trials.values())

    @property
    def total_steps(self) -> int:
        return sum(trial.steps for trial in self.trials.values())

    def rates(self, now_s: float) -> Rates:
        """By `now_s`, seconds since the epoch."""
        self._moves = deque(move for move in self._moves if now_s - move.time_s <= RATE_WINDOW_S)
        if not self._moves:
            return Rates()
        span = max(now_s - min(move.time_s for move in self._moves), 1e-3)
        steps, evaluations, work = (sum(column) for column in list(zip(*self._moves, strict=True))[1:])
        return Rates(steps / span, 3600 * evaluations / span, work / span)

    def work_left(self) -> float:
        """FLOPs of the trials that have not ended; a step of a larger network counts for more."""
        going = [(name, trial) for name, trial in self.trials.items() if trial.state in ("waiting", "running", "left")]
        return sum(self._work[name] * (trial.trial.training.steps - trial.step) for name, trial in going)


def done_long_ago(trial: TrialFolder) -> TrialDone | None:
    """The end of a trial that says nothing about speed any more, from its marker: its ledger need not be read."""
    if not trial.done.exists():
        return None
    done = TrialDone.model_validate_json(trial.done.read_bytes())
    return done if time.time() - done.time_s > RATE_WINDOW_S else None


class Follower:
    """Keeps a `SweepProgress` up to date with the ledgers of a sweep's folder."""

    def __init__(
        self, folder: SweepFolder, trials: Iterable[TrialSpec], early_stopping: EarlyStoppingSpec | None = None
    ) -> None:
        self.folder, self.progress = folder, SweepProgress.of(trials, early_stopping)
        self._tails: dict[str, LedgerTail] = {}
        self._open = list(self.progress.trials)

    def update(self) -> SweepProgress:
        """Read what is new. The first time: the ends of the ledgers, and markers of trials that were done long ago."""
        begun = self._begun()
        for trial_id in [name for name in self._open if name in begun]:
            self.progress.take(trial_id, self._new_records(trial_id))
        trials = self.progress.trials
        self._open = [name for name in self._open if trials[name].state not in ("finished", "diverged")]
        return self.progress

    def _begun(self) -> set[str]:
        try:
            return set(os.listdir(self.folder.path / "trials"))
        except FileNotFoundError:
            return set()

    def _new_records(self, trial_id: str) -> list[LedgerRecord]:
        trial = self.folder.trial(trial_id)
        tail = self._tails.get(trial_id)
        if tail is None:
            if (done := done_long_ago(trial)) is not None:
                return [done]
            if not trial.ledger.exists():
                return []
            tail = self._tails[trial_id] = LedgerTail.near_end(trial.ledger)
        return tail.read() if trial.ledger.stat().st_size > tail.offset else []
