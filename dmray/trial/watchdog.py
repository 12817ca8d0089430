"""Ends a process whose training hangs, and keeps the stacks of its threads.

The timer is faulthandler's: a C thread that does not need Python's lock, so it also ends a hang inside an extension.
It writes the stacks of all threads to `hang.txt` in the trial's folder and ends the process. The next worker of the
trial turns the file into a failure in the ledger.

No thread runs in a process that is stopped (SIGSTOP). The driver sees that from outside (dmray/on_ray/liveness.py) and
leaves a line in the same file.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dmray.records import AttemptFailed, AttemptStarted, Ledger, TrialFolder, read_ledger

_FROZEN = "WorkerFrozen"
_SET_UP_S = 3600.0
_REARM_EVERY_S = 1.0  # arming starts a thread, which is too expensive for each step


class Watchdog:
    """Ends the process `timeout_s` (or up to a second less) after the last step.

    The first step may take an hour (or `timeout_s`, if that is longer): a data set may have to be recorded before it.

    With `timeout_s` None it does nothing. A process has one such timer, so it watches one trial at a time.
    """

    def __init__(self, folder: TrialFolder, timeout_s: float | None) -> None:
        self._path, self._timeout_s = folder.hang, timeout_s
        self._armed_at = float("-inf")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the end of the block."""
        if self._timeout_s is None:
            yield
            return
        with self._path.open("w", encoding="utf-8") as self._stacks:
            try:
                self._arm(max(self._timeout_s, _SET_UP_S))
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
        self._path.unlink(missing_ok=True)

    def step(self) -> None:
        """A training step is done."""
        now = time.monotonic()
        if self._timeout_s is not None and now - self._armed_at > min(_REARM_EVERY_S, self._timeout_s / 4):
            self._arm(self._timeout_s)
            self._armed_at = now

    def pause(self) -> None:
        """Stop watching until the next `step`: waiting for evaluations is not a hang."""
        if self._timeout_s is not None:
            faulthandler.cancel_dump_traceback_later()
            self._armed_at = float("-inf")

    def _arm(self, timeout_s: float) -> None:
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=self._stacks)


def mark_frozen(folder: TrialFolder, pid: int, stopped_for_s: float) -> None:
    """Leave the next attempt word that the worker `pid` is killed because it is stopped: it cannot say so itself."""
    folder.hang.write_text(
        f"{_FROZEN}: process {pid} was stopped (SIGSTOP) for {stopped_for_s:z.0f} s and was killed\n", encoding="utf-8"
    )


def note_hang(folder: TrialFolder) -> bool:
    """If the last attempt hung or froze, record its failure, with the stacks of a hang; whether it did.

    No worker may be running the trial.
    """
    stacks = folder.hang.read_text(encoding="utf-8", errors="replace") if folder.hang.exists() else ""
    folder.hang.unlink(missing_ok=True)
    if not stacks:
        return False
    records = read_ledger(folder.ledger)
    error = "TrainingHang: no training step within faults.no_progress_timeout_s; the stacks are in the traceback"
    if stacks.startswith(_FROZEN):
        error, stacks = stacks.splitlines()[0], ""
    step = max((getattr(record, "step", 0) for record in records), default=0)
    attempt = sum(isinstance(record, AttemptStarted) for record in records)
    Ledger(folder.ledger).append(
        AttemptFailed(time_s=time.time(), attempt=attempt, step=step, error=error, traceback=stacks)
    )
    return True
