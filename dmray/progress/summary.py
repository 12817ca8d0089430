"""A sweep's progress as one value, which the views show and `dmray.status --json` prints."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from dmray.coordination.commands import CommandKind, read_command
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
from dmray.records import SweepFolder
from dmray.records.metrics import latest_values

STATUSES = ("waiting", RUNNING, INTERRUPTED, "paused", "failed", "stopped_early", "finished", "diverged")
_OPEN = ("waiting", RUNNING, INTERRUPTED, "paused")


@dataclass(frozen=True)
class TrialRow:
    """A trial that runs or failed. `steps` is what it is to reach; `latest` its newest metrics, by name."""

    trial: str
    status: str
    step: int
    steps: int
    latest: dict[str, float]
    error: str | None


@dataclass(frozen=True)
class Summary:
    """How many trials have each of `STATUSES`, and the speed over the last ten minutes.

    A trial whose attempt started is running while a driver is alive, else interrupted. `pending_evaluations` are due
    and not recorded, whether they wait or run. `eta_s` is None while nothing moves.
    """

    sweep: str
    folder: str
    driver: Driver | None
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

    @property
    def at_work(self) -> bool:
        """Whether a driver is alive."""
        return self.driver is not None and self.driver.alive

    @property
    def done(self) -> bool:
        """Whether every trial has ended as a result, or was stopped early."""
        return sum(self.statuses[status] for status in ENDED) == self.trials

    @property
    def ended(self) -> bool:
        """Whether no trial is open, though some may have failed."""
        return not any(self.statuses[status] for status in _OPEN)


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
    statuses = {name: with_liveness(history.status, alive) for name, history in progress.trials.items()}
    rows = [_row(history, statuses[name]) for name, history in progress.trials.items()]
    counts = Counter(statuses.values())
    return Summary(
        sweep=folder.name,
        folder=str(folder.path),
        driver=driver,
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


def _row(history: TrialHistory, status: str) -> TrialRow | None:
    if status not in (RUNNING, TrialStatus.FAILED):
        return None
    score = history.last_score
    return TrialRow(
        trial=history.trial.trial_id,
        status=status,
        step=history.step,
        steps=history.end_step,
        latest=latest_values(history.last_training, score.values if score else {}),
        error=history.error,
    )
