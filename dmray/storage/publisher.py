"""Sends a trial's files to the store beside the training, so that what is there is always a whole past state.

Object stores replace objects and do not append, so each pass sends the newest version of what has changed. A pass
reads first what it shows last: the done marker and the last checkpoint, then the ledger, then what the ledger's lines
speak of; and it sends them the other way round. So a line is never there without its table and weights, a checkpoint
never without the lines of the steps that a resumed trial will not repeat, and the marker never without all of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmray.errors import StorageError, StoreUnavailableError
from dmray.records.folders import SweepFolder, TrialFolder
from dmray.storage.place import object_name
from dmray.storage.store import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishTiming:
    """A pass at most every `every_s` if nobody wakes it; while the store fails, pauses between these two lengths."""

    every_s: float = 10.0
    shortest_pause_s: float = 1.0
    longest_pause_s: float = 30.0


@dataclass(frozen=True)
class _Change:
    """A file that is not in the store as it is here; `mark` tells this state of it from others."""

    name: str
    mark: tuple[int, int, int]
    content: bytes


class Publisher:
    """Publishes one trial's folder from now until `close`. A store that fails costs training nothing."""

    def __init__(
        self, store: Store, folder: SweepFolder, trial: TrialFolder, pace: PublishTiming | None = None
    ) -> None:
        self._store, self._folder, self._trial, self._pace = store, folder, trial, pace or PublishTiming()
        self._sent: dict[str, tuple[int, int, int]] = {}
        self._ledger = object_name(folder, trial.ledger)
        self._ledger_version = store.version(self._ledger)
        self._taken: StorageError | None = None
        self._due, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something worth sending is here; returns at once.

        Raises:
            StorageError: another worker has taken the trial up, so this one must end.
        """
        if self._taken is not None:
            raise self._taken
        self._due.set()

    def stop(self) -> None:
        """End without sending the rest."""
        self._over.set()
        self._due.set()
        self._thread.join()

    def close(self, patience_s: float) -> None:
        """Send the rest; returns when all is in the store.

        Raises:
            StoreUnavailableError: it is not, after `patience_s`; the files stay here.
            StorageError: another worker has taken the trial up.
        """
        self.stop()
        deadline, pauses = time.monotonic() + patience_s, self._pauses()
        while (problem := self._pass()) is not None:
            if self._taken is not None:
                raise self._taken
            if time.monotonic() > deadline:
                raise StoreUnavailableError(
                    f"{problem}; after {patience_s:g} s {self._trial.path} is not all there. --resume on this machine "
                    "goes on from that folder, elsewhere from what the store has"
                ) from problem
            time.sleep(next(pauses))

    def _run(self) -> None:
        pauses = self._pauses()
        while not self._over.is_set():
            self._due.wait(self._pace.every_s)
            self._due.clear()
            if self._over.is_set() or self._taken is not None:
                return
            began = time.monotonic()
            problem = self._pass()
            if problem is None:
                pauses = self._pauses()
                self._over.wait(time.monotonic() - began)  # half of the time at most, however often it is woken
            else:
                pause = next(pauses)
                _log.warning("%s; training goes on, next try in %g s", problem, pause)
                self._over.wait(pause)

    def _pauses(self) -> Iterator[float]:
        pause = self._pace.shortest_pause_s
        while True:
            yield pause
            pause = min(2 * pause, self._pace.longest_pause_s)

    def _pass(self) -> StorageError | None:
        """Send what has changed; the problem that kept it from being all."""
        try:
            self._publish()
        except StorageError as problem:
            return problem
        return None

    def _publish(self) -> None:
        trial = self._trial
        shown_last = [self._change(path) for path in (trial.last_checkpoint, trial.done)]
        ledger = self._change(trial.ledger)
        tables = sorted(trial.evaluations.glob("step_*.parquet"))
        shown_first = [
            self._change(path) for path in (trial.log, trial.best_checkpoint, trial.final_checkpoint, *tables)
        ]
        if not any([*shown_first, ledger, *shown_last]):
            return
        self._require_sole_writer()
        for change in (*shown_first, ledger, *shown_last):
            if change is not None:
                self._send(change)

    def _change(self, path: Path) -> _Change | None:
        if not path.exists():
            return None
        name, status = object_name(self._folder, path), path.stat()
        mark = (status.st_mtime_ns, status.st_size, status.st_ino)
        if self._sent.get(name) == mark:
            return None
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1 if path == self._trial.ledger else len(content)
        return _Change(name, mark, content[:whole])

    def _send(self, change: _Change) -> None:
        self._store.write(change.name, change.content)
        self._sent[change.name] = change.mark
        if change.name == self._ledger:
            self._ledger_version = self._store.version(self._ledger)

    def _require_sole_writer(self) -> None:
        """A worker that was given up for dead, and lives, must not write over what its successor does."""
        if self._store.version(self._ledger) == self._ledger_version:
            return
        ours = self._trial.ledger.read_bytes() if self._trial.ledger.exists() else b""
        theirs = self._store.read(self._ledger) or b""
        if not ours.startswith(theirs):  # else it is ours, sent without an answer
            self._taken = StorageError(f"{self._store.url}/{self._ledger}: another worker has taken this trial up")
            raise self._taken
