"""A local copy of a sweep in a store, for its driver, a report or a plan. Only changed objects are fetched.

A `pull` lists the trials' objects once and fetches the ledgers, logs and done markers that have changed. On request
(for MLflow) it also fetches the weights and the last episode table of each trial that has ended.
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
from dmray.files import as_storage_error, write_atomic, write_json
from dmray.records import SweepFolder, TrialDone, TrialFolder
from dmray.records.disk import read_file
from dmray.records.folders import PHASE_NAME, checkpoint_name
from dmray.records.records import ledger_line
from dmray.storage.place import existing_sweep_store, object_name, open_store, split_url, sweep_folder
from dmray.storage.store import Store

_log = logging.getLogger(__name__)
_FETCHES_AT_ONCE = 16
_CURE = "set DMRAY_CACHE to another folder"
_LARGEST_VERSIONS = 2**26
_RECORD_FILES = ("ledger.jsonl", "DONE.json", "log.txt", PHASE_NAME)


class SweepCopy:
    """The sweep of `store`, copied into `folder`. Safe to use from several threads; one object per folder at a time."""

    def __init__(self, store: Store, folder: SweepFolder, with_weights: bool = False) -> None:
        self._store, self._folder, self._with_weights = store, folder, with_weights
        self._versions_file = folder.path / (".pulled-with-weights.json" if with_weights else ".pulled.json")
        self._versions = _read_versions(self._versions_file)
        self._sent: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    @classmethod
    def for_reading(cls, storage: str, name: str) -> SweepCopy:
        """A copy in the folder of the role `reader`; nothing is fetched yet."""
        return cls(open_store(storage, name), sweep_folder(storage, name, "reader"))

    @classmethod
    def downloaded(cls, storage: str, name: str, with_weights: bool = False) -> SweepCopy:
        """A copy in the folder of the role `reader`, fetched now.

        Raises:
            StorageError: there is no such sweep, or the store refuses access.
            StoreUnavailableError: the store does not answer.
        """
        copy = cls(existing_sweep_store(storage, name), sweep_folder(storage, name, "reader"), with_weights)
        copy.download()
        return copy

    @property
    def folder(self) -> SweepFolder:
        return self._folder

    def download(self) -> None:
        """Fetch the manifest, the sweep's id and the evaluations made after training, then `pull`.

        Raises:
            StoreUnavailableError: the store does not answer.
            StorageError: the store refuses access.
        """
        for path in (self._folder.manifest, self._folder.identity):
            if self._fetch_file(path):
                self._sent[object_name(self._folder, path)] = _fingerprint(path)
        self.fetch_reevaluations()
        self.pull()

    def pull(self) -> None:
        """Copy the ledgers, logs and done markers that have changed; remove those that the store does not have.

        Raises:
            StoreUnavailableError: the store does not answer.
            StorageError: the store refuses access.
        """
        with self._lock:
            self._pull()

    def fetch_reevaluations(self) -> None:
        """Copy the evaluations made after training. Their names tell their content: those that are here stay.

        Raises:
            StoreUnavailableError: the store does not answer.
            StorageError: the store refuses access.
        """
        root = self._folder.reevaluations.name
        names = {name for name in self._store.list(root) if len(name.split("/")) == 3 and name.endswith(".json")}
        for path in self._folder.reevaluations.glob("*/*.json"):
            if object_name(self._folder, path) not in names:
                path.unlink(missing_ok=True)
        self._fetch(sorted(name for name in names if not self._has(name)))

    def fetch_report(self) -> None:
        """Copy the report; remove local files that are not in the store's report.

        Raises:
            StoreUnavailableError: the store does not answer.
            StorageError: the store refuses access.
        """
        names = self._store.list("report")
        here = [path for path in self._folder.report.rglob("*") if path.is_file()]
        for path in (path for path in here if object_name(self._folder, path) not in names):
            path.unlink()
        for name in names:
            path = self._folder.path / name
            if self._fetch_file(path):
                self._sent[name] = _fingerprint(path)

    def push(self) -> None:
        """Upload the driver's own files: the manifest, the sweep's id, the report, and what the driver does now.

        Raises:
            StoreUnavailableError: the store does not answer.
            StorageError: the store refuses access.
        """
        reported = [path for path in self._folder.report.rglob("*") if path.is_file()]
        with self._lock:
            for path in (self._folder.manifest, self._folder.identity, *reported):
                if path.exists():
                    self._push(path)
            try:
                self._push(self._folder.phase)
            except FileNotFoundError:  # the driver has left the phase
                if self._sent.pop(PHASE_NAME, None) is not None:
                    self._store.remove(PHASE_NAME)

    def _push(self, path: Path) -> None:
        name, fingerprint = object_name(self._folder, path), _fingerprint(path)
        if self._sent.get(name) != fingerprint:
            self._store.write(name, path.read_bytes())
            self._sent[name] = fingerprint

    def advance(self) -> bool:
        """`pull` and `push`, for a `PeriodicThread`. Returns False if the store fails; the next call retries."""
        try:
            self.pull()
            self.push()
        except StorageError as problem:
            _log.warning("%s; progress is not updated until it answers", problem)
            return False
        return True

    def send(self, path: Path, content: bytes) -> None:
        """Upload a file of the sweep; it need not be here.

        Raises:
            StoreUnavailableError: the store does not answer.
            StorageError: the store refuses access.
        """
        self._store.write(object_name(self._folder, path), content)

    def checkpoint_names(self) -> dict[str, list[str]]:
        """The weights that the store has of each trial, by the names of `TrialFolder.checkpoint`.

        Raises:
            StoreUnavailableError: the store does not answer.
            StorageError: the store refuses access.
        """
        found: dict[str, list[str]] = {}
        for name in sorted(self._store.list("trials"), reverse=True):  # numbered ones, final, best
            parts = name.split("/")
            if len(parts) == 4 and parts[2] == "checkpoints" and (named := checkpoint_name(Path(parts[3]))):
                found.setdefault(parts[1], []).append(named)
        return found

    def fetch_trial(self, trial: TrialFolder) -> None:
        """Copy a trial's ledger and all its checkpoints.

        Raises:
            StoreUnavailableError: the store does not answer.
            StorageError: the store refuses access.
        """
        kept = self._store.list(object_name(self._folder, trial.last_checkpoint.parent))
        paths = [self._folder.path / name for name in kept]
        numbered = [path for path in paths if (checkpoint_name(path) or "").startswith("step:")]
        for path in (trial.ledger, trial.final_checkpoint, trial.best_checkpoint, trial.last_checkpoint, *numbered):
            self._fetch_file(path)

    def fetch_episode_tables(self) -> None:
        """Copy the episode tables of all trials that are not here.

        Raises:
            StoreUnavailableError: the store does not answer.
            StorageError: the store refuses access.
        """
        for name in self._store.list("evaluations"):
            parts = name.split("/")  # evaluations/<trial id>/<file>; other objects are none of a sweep
            if len(parts) == 3 and parts[2].endswith(".parquet"):
                path = self._folder.trial(parts[1]).evaluations / parts[2]
                content = None if path.exists() else self._store.read(name)
                if content is not None:
                    _write(path, content)

    def _pull(self) -> None:
        listed = self._store.list("trials")
        records = {name: version for name, version in listed.items() if _is_record(name)}
        for path in self._folder.path.glob("trials/*/*"):
            if path.name in _RECORD_FILES and object_name(self._folder, path) not in records:
                path.unlink()
        new = {name for name, version in records.items() if self._versions.get(name) != version or not self._has(name)}
        ledgers = sorted(name for name in new if name.endswith(".jsonl"))
        self._fetch(ledgers)
        self._fetch(sorted(new - set(ledgers)))  # markers last: a marker's ledger must be here
        if records != self._versions:
            self._versions = records
            with as_storage_error(self._versions_file, _CURE):
                write_json(self._versions_file, records)

    def _fetch_file(self, path: Path) -> bool:
        """Copy a file, or remove it here if the store does not have it. Returns whether the store has it."""
        content = self._store.read(object_name(self._folder, path))
        if content is None:
            path.unlink(missing_ok=True)
        else:
            _write(path, content)
        return content is not None

    def _has(self, name: str) -> bool:
        return (self._folder.path / name).exists()

    def _fetch(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_FETCHES_AT_ONCE, "dmray-pull") as pool:
            list(pool.map(self._fetch_one, names))

    def _fetch_one(self, name: str) -> None:
        content = self._store.read(name)
        if content is None:  # removed after the listing
            return
        path = self._folder.path / name
        if self._with_weights and path.name == "ledger.jsonl" and _has_ended(content):
            self._fetch_result(TrialFolder(path.parent))
        _write(path, content)

    def _fetch_result(self, trial: TrialFolder) -> None:
        tables = sorted(self._store.list(object_name(self._folder, trial.episode_table(0)).rpartition("/")[0]))
        last_table = [trial.evaluations / name.rpartition("/")[2] for name in tables[-1:]]
        for path in (trial.final_checkpoint, trial.best_checkpoint, *last_table):
            self._fetch_file(path)


def fetch_from_store(url: str) -> Path:
    """Fetch a trial's ledger and checkpoints; `url` names the trial's folder or a file in it. Returns the local path.

    Raises:
        StorageError: `url` is not a trial's, there is no such trial, or the store refuses access.
        StoreUnavailableError: the store does not answer.
    """
    sweep, found, rest = url.rstrip("/").partition("/trials/")
    if not found or not rest or {"", ".", ".."}.intersection(rest.split("/")):
        raise StorageError(
            f"{url}: not the URL of a trial; a trial's URL looks like s3://bucket/prefix/quickstart/trials/<trial>"
        )
    copy = SweepCopy.for_reading(*split_url(sweep))
    trial_id, _, file = rest.partition("/")
    trial = copy.folder.trial(trial_id)
    copy.fetch_trial(trial)
    if not trial.ledger.exists():
        raise StorageError(f"{url}: no such trial in the store")
    return trial.path / file if file else trial.path


def _write(path: Path, content: bytes) -> None:
    with as_storage_error(path, _CURE):
        write_atomic(path, content)


def _is_record(name: str) -> bool:
    """trials/<trial id>/<file>: objects at other places are none of a trial's records."""
    parts = name.split("/")
    return len(parts) == 3 and parts[2] in _RECORD_FILES


def _read_versions(path: Path) -> dict[str, str]:
    """What was fetched before; nothing if its file is missing or damaged: then all is fetched again."""
    try:
        versions = json.loads(read_file(path, _LARGEST_VERSIONS))
    except FileNotFoundError:
        return {}
    except (StorageError, ValueError, RecursionError):
        versions = None
    if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
        _log.warning("%s: damaged; all ledgers are fetched again", path)
        return {}
    return versions


def _has_ended(ledger: bytes) -> bool:
    last = ledger.rstrip(b"\n").rpartition(b"\n")[2]
    try:
        return isinstance(ledger_line.validate_json(last), TrialDone)
    except ValidationError:  # reported by whoever reads the ledger
        return False


def _fingerprint(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
