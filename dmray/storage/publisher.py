"""Uploads a trial's files to the store during training, such that the store always holds a state to resume from.

Object stores replace objects and cannot append, so each upload sends the current content of every changed file.
Files are read in one order (done marker, last checkpoint, ledger, then the tables and weights that the ledger
mentions) and sent in the opposite order. So in the store a ledger's line always has its table and weights, the last
checkpoint always has the ledger's lines up to its step, and the done marker is the last to arrive.
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
    """Seconds between two uploads unless `wake` is called; and the shortest and longest pause while the store fails."""

    every_s: float = 10.0
    shortest_pause_s: float = 1.0
    longest_pause_s: float = 30.0


@dataclass(frozen=True)
class _Change:
    """A file that the store does not have in this state; the `fingerprint` changes with every write to the file."""

    name: str
    fingerprint: tuple[int, int, int]
    content: bytes


class Publisher:
    """Uploads one trial's folder in a thread until `close`. Training never waits for a store that fails."""

    def __init__(
        self, store: Store, folder: SweepFolder, trial: TrialFolder, timing: PublishTiming | None = None
    ) -> None:
        self._store, self._folder, self._trial, self._timing = store, folder, trial, timing or PublishTiming()
        self._sent: dict[str, tuple[int, int, int]] = {}
        self._ledger = object_name(folder, trial.ledger)
        self._ledger_version = store.version(self._ledger)
        self._taken_over: StorageError | None = None
        self._wanted, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="dmray-publisher", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Ask for an upload; returns at once.

        Raises:
            StorageError: another worker runs this trial now, so this one must end.
        """
        if self._taken_over is not None:
            raise self._taken_over
        self._wanted.set()

    def stop(self) -> None:
        """End the thread without uploading what is left."""
        self._stopped.set()
        self._wanted.set()
        self._thread.join()

    def close(self, timeout_s: float) -> None:
        """Upload what is left; returns when the store has everything.

        Raises:
            StoreUnavailableError: the store does not answer within `timeout_s`; the local files stay.
            StorageError: another worker runs this trial now.
        """
        self.stop()
        deadline, pauses = time.monotonic() + timeout_s, self._pauses()
        while (problem := self._try_upload()) is not None:
            if self._taken_over is not None:
                raise self._taken_over
            if time.monotonic() > deadline:
                raise StoreUnavailableError(
                    f"{problem}; gave up after {timeout_s:g} s. --resume on this machine continues from "
                    f"{self._trial.path}, on another machine from what the store has"
                ) from problem
            time.sleep(next(pauses))

    def _run(self) -> None:
        pauses = self._pauses()
        while not self._stopped.is_set():
            self._wanted.wait(self._timing.every_s)
            self._wanted.clear()
            if self._stopped.is_set() or self._taken_over is not None:
                return
            began = time.monotonic()
            problem = self._try_upload()
            if problem is None:
                pauses = self._pauses()
                self._stopped.wait(time.monotonic() - began)  # upload for half of the time at most
            else:
                pause = next(pauses)
                _log.warning("%s; training continues, next upload in %g s", problem, pause)
                self._stopped.wait(pause)

    def _pauses(self) -> Iterator[float]:
        pause = self._timing.shortest_pause_s
        while True:
            yield pause
            pause = min(2 * pause, self._timing.longest_pause_s)

    def _try_upload(self) -> StorageError | None:
        """Upload what has changed. Returns the error if that failed."""
        try:
            self._upload()
        except StorageError as problem:
            return problem
        return None

    def _upload(self) -> None:
        trial = self._trial
        sent_last = [self._change(path) for path in (trial.last_checkpoint, trial.done)]
        ledger = self._change(trial.ledger)
        tables = sorted(trial.evaluations.glob("step_*.parquet"))
        sent_first = [
            self._change(path)
            for path in (trial.phase, trial.log, trial.best_checkpoint, trial.final_checkpoint, *tables)
        ]
        if not any([*sent_first, ledger, *sent_last]):
            return
        self._require_sole_writer()
        for change in (*sent_first, ledger, *sent_last):
            if change is not None:
                self._send(change)

    def _change(self, path: Path) -> _Change | None:
        if not path.exists():
            return None
        name, status = object_name(self._folder, path), path.stat()
        fingerprint = (status.st_mtime_ns, status.st_size, status.st_ino)
        if self._sent.get(name) == fingerprint:
            return None
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1 if path == self._trial.ledger else len(content)
        return _Change(name, fingerprint, content[:whole])

    def _send(self, change: _Change) -> None:
        self._store.write(change.name, change.content)
        self._sent[change.name] = change.fingerprint
        if change.name == self._ledger:
            self._ledger_version = self._store.version(self._ledger)

    def _require_sole_writer(self) -> None:
        """Raise if another worker has written to this trial: this one was taken for dead and must overwrite nothing."""
        if self._store.version(self._ledger) == self._ledger_version:
            return
        ours = self._trial.ledger.read_bytes() if self._trial.ledger.exists() else b""
        theirs = self._store.read(self._ledger) or b""
        if not ours.startswith(theirs):  # otherwise we wrote it ourselves and the answer was lost
            self._taken_over = StorageError(f"{self._store.url}/{self._ledger}: another worker runs this trial now")
            raise self._taken_over
