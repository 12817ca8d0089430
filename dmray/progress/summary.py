"""The state of a sweep as one value: what every view of it shows, and `dmray.status --json` prints."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from dmray.coordination.commands import CommandKind, read_command
from dmray.coordination.sweep_lock import Driver, find_driver
from dmray.errors import StorageError
from dmray.planning.manifest import read_manifest
from dmray.progress.progress import STATES, Follower, TrialProgress
from dmray.records import SweepFolder

_OPEN = ("waiting", "running", "left", "interrupted")


@dataclass(frozen=True)
class TrialRow:
    """A trial that runs or failed. `steps` is what it is to reach; `score` its last evaluation's, normalized."""

    trial: str
    state: str
    step: int
    steps: int
    steps_per_s: float
    loss: float | None
    score: float | None
    error: str | None


@dataclass(frozen=True)
class Summary:
    """Trials by state (a running one whose driver is gone is `interrupted`), speed over the last ten minutes.

    `open_evaluations` are due and not recorded, whether they wait or run. `eta_s` is None while nothing moves.
    """

    sweep: str
    folder: str
    driver: Driver | None
    order: CommandKind | None
    ordered_by: str | None
    trials: int
    states: dict[str, int]
    steps: int
    total_steps: int
    steps_per_s: float
    evaluations_per_h: float
    pending_evaluations: int
    eta_s: float | None
    running: tuple[TrialRow, ...]
    failures: tuple[TrialRow, ...]

    @property
    def at_work(self) -> bool:
        """Whether a driver is alive."""
        return self.driver is not None and self.driver.alive

    @property
    def done(self) -> bool:
        """Whether every trial has ended as a result, or was stopped early."""
        return sum(self.states[state] for state in ("finished", "diverged", "stopped")) == self.trials

    @property
    def ended(self) -> bool:
        """Whether no trial is open, though some may have failed."""
        return not any(self.states[state] for state in _OPEN)


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
    states = {name: _state(trial, alive) for name, trial in progress.trials.items()}
    rows = {name: _row(trial, states[name]) for name, trial in progress.trials.items() if states[name] != "waiting"}
    counts = Counter(states.values())
    return Summary(
        sweep=folder.name,
        folder=str(folder.path),
        driver=driver,
        order=order.kind if order else None,
        ordered_by=order.sent_by if order else None,
        trials=len(states),
        states={state: counts[state] for state in (*STATES, "interrupted")},
        steps=progress.steps,
        total_steps=progress.total_steps,
        steps_per_s=rates.steps_per_s,
        evaluations_per_h=rates.evaluations_per_h,
        pending_evaluations=sum(trial.pending_evaluations for trial in progress.trials.values()) if alive else 0,
        eta_s=progress.work_left() / rates.work_per_s if moving else None,
        running=tuple(row for row in rows.values() if row.state == "running"),
        failures=tuple(row for row in rows.values() if row.state == "failed"),
    )


def _state(trial: TrialProgress, alive: bool) -> str:
    return "interrupted" if trial.state == "running" and not alive else trial.state


def _row(trial: TrialProgress, state: str) -> TrialRow:
    return TrialRow(
        trial=trial.trial.trial_id,
        state=state,
        step=trial.step,
        steps=trial.steps,
        steps_per_s=trial.steps_per_s,
        loss=trial.loss,
        score=trial.score,
        error=trial.error,
    )
