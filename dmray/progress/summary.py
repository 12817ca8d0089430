"""A sweep's progress as one value, which the views show and `dmray.status --json` prints."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

from dmray.coordination.commands import CommandKind, SweepCommand, read_command
from dmray.coordination.sweep_lock import Driver, find_driver
from dmray.errors import StorageError
from dmray.planning.manifest import read_manifest
from dmray.progress.progress import Follower, pending_evaluations
from dmray.progress.trial_status import (
    ENDED,
    INTERRUPTED,
    RUNNING,
    TrialHistory,
    TrialStatus,
    with_liveness,
)
from dmray.records import SweepFolder, TrialFolder
from dmray.records.metrics import latest_values
from dmray.records.phase import Phase, read_phase

STATUSES = ("waiting", RUNNING, INTERRUPTED, "paused", "failed", "stopped_early", "finished", "diverged")
_ENDS = ("failure", "paused", "stopped", "done")  # records of an attempt's end
_OPEN = ("waiting", RUNNING, INTERRUPTED, "paused")


@dataclass(frozen=True)
class CurrentPhase:
    """What a process does now (a name of `dmray.records.phase`, and in words), and for how long."""

    name: str
    words: str
    elapsed_s: float

    @classmethod
    def of(cls, phase: Phase, now_s: float) -> CurrentPhase:
        return cls(phase.name, phase.words, phase.elapsed_s(now_s))

    def __str__(self) -> str:
        return f"{self.words}, {timedelta(seconds=round(self.elapsed_s))}"


@dataclass(frozen=True)
class TrialRow:
    """A trial that runs or failed. `steps` is what it is to reach; `latest` its newest metrics, by name.

    `steps_per_s` and `eta_s` are those of its running attempt, None before the first record of training. `phase` is
    None where the trial does not run or does not say.
    """

    trial: str
    status: str
    step: int
    steps: int
    steps_per_s: float | None
    eta_s: float | None
    phase: CurrentPhase | None
    latest: dict[str, float]
    error: str | None


@dataclass(frozen=True)
class Summary:
    """How many trials have each of `STATUSES`, and the speed over the last ten minutes.

    A trial whose attempt started, or whose worker is setting it up, is running while a driver is alive; without a
    driver it is interrupted. `phase` is what the driver does, where it does not only wait for trials.
    `pending_evaluations` are due and not recorded, whether they wait or run. `eta_s` is None while nothing moves.
    `search_open`: no driver runs, and more trials of a search follow from those so far.
    """

    sweep: str
    folder: str
    driver: Driver | None
    phase: CurrentPhase | None
    order: CommandKind | None
    ordered_by: str | None
    trials: int
    statuses: dict[str, int]
    steps: int
    total_steps: int
    steps_per_s: float
    evaluations_per_h: float
    pending_evaluations: int
    eta_s: float | None
    running: tuple[TrialRow, ...]
    failures: tuple[TrialRow, ...]
    search_open: bool = False

    @property
    def at_work(self) -> bool:
        """Whether a driver is alive."""
        return self.driver is not None and self.driver.alive

    @property
    def done(self) -> bool:
        """Whether every trial has ended as a result, or was stopped early."""
        return not self.search_open and sum(self.statuses[status] for status in ENDED) == self.trials

    @property
    def ended(self) -> bool:
        """Whether no trial is open, though some may have failed."""
        return not self.search_open and not any(self.statuses[status] for status in _OPEN)


def follower_of(folder: SweepFolder) -> Follower:
    """Follow the sweep that was started in `folder`.

    Raises:
        StorageError: none was, or by another version of dmray.
    """
    if not folder.manifest.exists():
        raise StorageError(f"{folder.path}: no sweep was started here; name its file or <storage>/<sweep>")
    plan = read_manifest(folder)
    return Follower(folder, plan.trials, plan.sweep.early_stopping)


def summarize(follower: Follower) -> Summary:
    """Read what is new, and sum up."""
    progress, folder, now_s = follower.update(), follower.folder, time.time()
    driver, order, rates = find_driver(folder), read_command(folder), progress.rates(now_s)
    alive = driver is not None and driver.alive
    moving = alive and rates.work_per_s > 0 and (order is None or order.kind == "run")
    phases = _trial_phases(follower, order) if alive else {}
    statuses = {
        name: RUNNING if name in phases else with_liveness(history.status, alive)
        for name, history in progress.trials.items()
    }
    rows = [_row(history, statuses[name], phases.get(name), now_s) for name, history in progress.trials.items()]
    counts = Counter(statuses.values())
    phase = _driver_phase(follower, counts[RUNNING] > 0) if alive else None
    return Summary(
        sweep=folder.name,
        folder=str(folder.path),
        driver=driver,
        phase=CurrentPhase.of(phase, now_s) if phase is not None else None,
        order=order.kind if order else None,
        ordered_by=order.sent_by if order else None,
        trials=len(statuses),
        statuses={status: counts[status] for status in STATUSES},
        steps=progress.steps,
        total_steps=progress.total_steps,
        steps_per_s=rates.steps_per_s,
        evaluations_per_h=rates.evaluations_per_h,
        pending_evaluations=sum(map(pending_evaluations, progress.trials.values())) if alive else 0,
        eta_s=progress.work_left() / rates.work_per_s if moving else None,
        running=tuple(row for row in rows if row is not None and row.status == RUNNING),
        failures=tuple(row for row in rows if row is not None and row.status == TrialStatus.FAILED),
    )


def live_phase(history: TrialHistory, folder: TrialFolder, command: int) -> Phase | None:
    """What the trial's worker does, while a driver runs the sweep under this command; None once it has ended."""
    phase, last = read_phase(folder.phase, command), history.last
    if phase is None or (last is not None and last.kind in _ENDS and last.time_s >= phase.time_s):
        return None
    return phase


def _trial_phases(follower: Follower, order: SweepCommand | None) -> dict[str, Phase]:
    number, trials = order.number if order else 0, follower.progress.trials
    found = {
        name: live_phase(history, follower.folder.trial(name), number)
        for name, history in trials.items()
        if name in follower.begun and history.status not in ENDED and history.damage is None
    }
    return {name: phase for name, phase in found.items() if phase is not None}


def _driver_phase(follower: Follower, some_run: bool) -> Phase | None:
    """What the driver does. Trials count as started once one of them runs or has a record."""
    phase = read_phase(follower.folder.phase)
    if phase is not None and phase.name == "starting_trials":
        ends = [history.last.time_s for history in follower.progress.trials.values() if history.last is not None]
        return None if some_run or max(ends, default=0.0) >= phase.time_s else phase
    return phase


def speed_of(history: TrialHistory) -> float | None:
    """Steps per second by the last record of training, if that is of the last attempt."""
    training, attempt = history.last_training, history.last_attempt
    if training is None or (attempt is not None and training.time_s < attempt.time_s):
        return None
    return training.steps_per_s


def eta_of(history: TrialHistory) -> float | None:
    """Seconds until the trial has taken its steps, at its speed; None where that is not known."""
    speed = speed_of(history)
    return max(0, history.end_step - history.step) / speed if speed else None


def _row(history: TrialHistory, status: str, phase: Phase | None, now_s: float) -> TrialRow | None:
    if status not in (RUNNING, TrialStatus.FAILED):
        return None
    score, runs = history.last_score, status == RUNNING
    return TrialRow(
        trial=history.trial.trial_id,
        status=status,
        step=history.step,
        steps=history.end_step,
        steps_per_s=speed_of(history) if runs else None,
        eta_s=eta_of(history) if runs else None,
        phase=CurrentPhase.of(phase, now_s) if phase is not None else None,
        latest=latest_values(history.last_training, score.values if score else {}),
        error=history.error,
    )
