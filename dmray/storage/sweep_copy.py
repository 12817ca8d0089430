"""A sweep of a store as a folder here: what its driver, a report or a plan reads. Only changed objects are fetched.

A pass lists the trials' objects once and fetches new ledgers and markers; a ledger that says that its trial has ended
brings the trial's weights and last table with it where they are wanted (MLflow keeps them).
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from dmray.errors import StorageError
from dmray.files import write_atomic, write_json
from dmray.records import SweepFolder, TrialDone, TrialFolder
from dmray.records.records import ledger_line
from dmray.storage.place import begun_sweep, object_name, split_url, store_of, sweep_folder
from dmray.storage.store import Store

_log = logging.getLogger(__name__)
_FETCHES_AT_ONCE = 16
_FOLLOWED = ("ledger.jsonl", "DONE.json", "log.txt")


class SweepCopy:
    """The copy in `folder` of the sweep in `store`. Safe for threads, but one such object a folder at a time."""

    def __init__(self, store: Store, folder: SweepFolder, with_weights: bool = False) -> None:
        self._store, self._folder, self._with_weights = store, folder, with_weights
        self._notes = folder.path / (".pulled-with-weights.json" if with_weights else ".pulled.json")
        self._known: dict[str, str] = json.loads(self._notes.read_bytes()) if self._notes.exists() else {}
        self._sent: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    @classmethod
    def to_read(cls, storage: str, name: str) -> SweepCopy:
        """A copy for looking only."""
        return cls(store_of(storage, name), sweep_folder(storage, name, "reader"))

    @classmethod
    def fetched(cls, storage: str, name: str, with_weights: bool = False) -> SweepCopy:
        """A copy for looking only, of a sweep that was begun, just fetched.

        Raises:
            StorageError: none was. Or as `open`.
        """
        copy = cls(begun_sweep(storage, name), sweep_folder(storage, name, "reader"), with_weights)
        copy.open()
        return copy

    @property
    def folder(self) -> SweepFolder:
        return self._folder

    def open(self) -> None:
        """Fetch what the last driver wrote, then `pull`.

        Raises:
            StorageError, StoreUnavailableError: as their names say.
        """
        for path in (self._folder.manifest, self._folder.identity):
            if self._fetch_file(path):
                self._sent[object_name(self._folder, path)] = _mark(path)
        self.pull()

    def pull(self) -> None:
        """Make ledgers and markers here what they are in the store.

        Raises:
            StorageError, StoreUnavailableError: as their names say.
        """
        with self._lock:
            self._pull()

    def fetch_report(self) -> None:
        """Make the report here what it is in the store.

        Raises:
            StorageError, StoreUnavailableError: as their names say.
        """
        names = self._store.list("report")
        here = [path for path in self._folder.report.rglob("*") if path.is_file()]
        for path in (path for path in here if object_name(self._folder, path) not in names):
            path.unlink()
        for name in names:
            path = self._folder.path / name
            if self._fetch_file(path):
                self._sent[name] = _mark(path)

    def push(self) -> None:
        """Send what is written here: the sweep's manifest and name, and the report.

        Raises:
            StorageError, StoreUnavailableError: as their names say.
        """
        reported = [path for path in self._folder.report.rglob("*") if path.is_file()]
        with self._lock:
            for path in (self._folder.manifest, self._folder.identity, *reported):
                name = object_name(self._folder, path)
                if path.exists() and self._sent.get(name) != (mark := _mark(path)):
                    self._store.write(name, path.read_bytes())
                    self._sent[name] = mark

    def advance(self) -> bool:
        """`pull` and `push` while the sweep runs; a store that fails is tried again the next time."""
        try:
            self.pull()
            self.push()
        except StorageError as problem:
            _log.warning("%s; what is shown here stands still meanwhile", problem)
            return False
        return True

    def fetch_trial(self, trial: TrialFolder) -> None:
        """Fetch a trial's ledger and all its checkpoints.

        Raises:
            StorageError, StoreUnavailableError: as their names say.
        """
        for path in (trial.ledger, trial.final_checkpoint, trial.best_checkpoint, trial.last_checkpoint):
            self._fetch_file(path)

    def _pull(self) -> None:
        listed = self._store.list("trials")
        records = {name: version for name, version in listed.items() if name.endswith(_FOLLOWED)}
        for path in self._folder.path.glob("trials/*/*"):
            if path.name in _FOLLOWED and object_name(self._folder, path) not in records:
                path.unlink()
        new = {name for name, version in records.items() if self._known.get(name) != version or not self._has(name)}
        ledgers = sorted(name for name in new if name.endswith(".jsonl"))
        self._fetch(ledgers)
        self._fetch(sorted(new - set(ledgers)))  # after the ledgers that say what they mean
        if records != self._known:
            self._known = records
            write_json(self._notes, records)

    def _fetch_file(self, path: Path) -> bool:
        """Make the file what the store has of it; whether it has it."""
        content = self._store.read(object_name(self._folder, path))
        if content is None:
            path.unlink(missing_ok=True)
        else:
            write_atomic(path, content)
        return content is not None

    def _has(self, name: str) -> bool:
        return (self._folder.path / name).exists()

    def _fetch(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_FETCHES_AT_ONCE, "pull") as pool:
            list(pool.map(self._fetch_one, names))

    def _fetch_one(self, name: str) -> None:
        content = self._store.read(name)
        if content is None:  # removed since it was listed
            return
        path = self._folder.path / name
        if self._with_weights and path.name == "ledger.jsonl" and _has_ended(content):
            self._fetch_result(TrialFolder(path.parent))
        write_atomic(path, content)

    def _fetch_result(self, trial: TrialFolder) -> None:
        tables = sorted(self._store.list(object_name(self._folder, trial.episode_table(0)).rpartition("/")[0]))
        last_table = [trial.evaluations / name.rpartition("/")[2] for name in tables[-1:]]
        for path in (trial.final_checkpoint, trial.best_checkpoint, *last_table):
            self._fetch_file(path)


def fetch_from_store(url: str) -> Path:
    """A trial's folder, or a file in it, as it is in a store: fetched, with the trial's ledger and checkpoints.

    Raises:
        StorageError, StoreUnavailableError: as their names say; it is no part of a sweep.
    """
    sweep, found, rest = url.rstrip("/").partition("/trials/")
    if not found or not rest:
        raise StorageError(f"{url}: name a trial, for example s3://bucket/prefix/quickstart/trials/<trial>")
    copy = SweepCopy.to_read(*split_url(sweep))
    trial_id, _, file = rest.partition("/")
    trial = copy.folder.trial(trial_id)
    copy.fetch_trial(trial)
    if not trial.ledger.exists():
        raise StorageError(f"{url}: no such trial in the store")
    return trial.path / file if file else trial.path


def _has_ended(ledger: bytes) -> bool:
    last = ledger.rstrip(b"\n").rpartition(b"\n")[2]
    try:
        return isinstance(ledger_line.validate_json(last), TrialDone)
    except ValidationError:  # whoever reads the ledger tells
        return False


def _mark(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
