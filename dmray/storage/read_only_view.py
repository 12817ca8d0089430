"""A partial local copy of a sweep in a store, for commands that only look: no weights, no episode tables.

Small files are fetched on request. Of growing files (ledgers, logs) only the new bytes are fetched. So looking at
hundreds of running trials costs one listing and the new lines of their ledgers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dmray.files import as_storage_error, write_atomic
from dmray.records.folders import SweepFolder, TrialFolder
from dmray.records.ledger import read_done_marker
from dmray.records.records import ledger_line
from dmray.storage.place import object_name
from dmray.storage.store import Store

_FETCHES_AT_ONCE = 16
_CURE = "set TMPDIR to another folder"
_TAIL_BYTES = 65_536  # the first fetch of a ledger brings only its last records


class ReadOnlyView:
    """The sweep of `store`, copied into `folder`, which nobody else may use.

    Raises (all methods):
        StoreUnavailableError: the store does not answer. What was fetched before stays in `folder`.
        StorageError: the store refuses access.
    """

    def __init__(self, store: Store, folder: SweepFolder) -> None:
        self.folder = folder
        self._store = store
        self._fetched: dict[str, int] = {}  # bytes read so far of each growing object

    def trial_ids(self) -> tuple[str, ...]:
        """The ids of the trials that have started."""
        return self._store.folders("trials")

    def fetch(self, name: str) -> None:
        """Copy a small file; remove it here if the store does not have it."""
        content = self._store.read(name)
        if content is None:
            (self.folder.path / name).unlink(missing_ok=True)
        else:
            _write(self.folder.path / name, content)

    def fetch_records(self, can_skip: Callable[[TrialFolder], bool]) -> None:
        """Copy all done markers, what workers do now, and the end of all ledgers; of trials that `can_skip` accepts,
        the last line.

        A copied ledger may lack the first lines, but holds whole lines only.
        """
        sizes = self._store.sizes("trials")
        trials = [self.folder.trial(trial_id) for trial_id in sorted({name.split("/")[1] for name in sizes})]
        trials_begun = trials
        trials = [trial for trial in trials if object_name(self.folder, trial.ledger) in sizes]
        markers = [object_name(self.folder, trial.done) for trial in trials if not trial.done.exists()]
        self._each(self.fetch, [name for name in markers if name in sizes])
        phases = [object_name(self.folder, trial.phase) for trial in trials_begun if not trial.done.exists()]
        self._each(self.fetch, [name for name in phases if name in sizes])
        ledgers = []
        for trial in trials:
            name = object_name(self.folder, trial.ledger)
            if name in self._fetched or not can_skip(trial):
                ledgers.append(name)
            elif not trial.ledger.exists() and (done := read_done_marker(trial)) is not None:
                _write(trial.ledger, ledger_line.dump_json(done.end) + b"\n")  # the last line stands for all
        self._each(lambda name: self._grow(name, sizes[name], _TAIL_BYTES), ledgers)

    def fetch_trial(self, trial: TrialFolder) -> dict[str, int]:
        """Copy a trial's ledger, log, done marker and phase, whole. The sizes of all its objects, by their file names.

        The marker comes first, so that the ledger of a trial that is done is complete.
        """
        sizes = self._store.sizes(object_name(self.folder, trial.path))
        for path in (trial.done, trial.ledger, trial.log, trial.phase):
            if (name := object_name(self.folder, path)) in sizes:
                self.fetch(name)
        tables = self._store.sizes(f"evaluations/{trial.path.name}")
        before = f"trials/{trial.path.name}/"
        return {name.removeprefix(before): size for name, size in {**sizes, **tables}.items()}

    def fetch_log(self, trial: TrialFolder) -> None:
        """Copy a trial's done marker, then its log, so that the log of a trial that is done is complete."""
        sizes = self._store.sizes(object_name(self.folder, trial.path))
        done, log = (object_name(self.folder, path) for path in (trial.done, trial.log))
        if done in sizes:
            self.fetch(done)
        if log in sizes:
            self._grow(log, sizes[log])

    def _grow(self, name: str, size: int, tail: int | None = None) -> None:
        """Append the new bytes of an object of `size` bytes; at first, write the lines in its last `tail` bytes."""
        known = self._fetched.get(name)
        if known == size:
            return
        path = self.folder.path / name
        if known is not None and known < size:
            content = self._store.read(name, known) or b""
            with as_storage_error(path, _CURE), path.open("ab") as stream:
                stream.write(content)
            self._fetched[name] = known + len(content)
            return
        start = max(0, size - tail) if tail is not None else 0
        content = self._store.read(name, start) or b""
        lines = content if start == 0 else content.partition(b"\n")[2]
        if start and not lines:  # the last line alone is longer than `tail`
            start, lines = 0, self._store.read(name) or b""
            content = lines
        _write(path, lines)
        self._fetched[name] = start + len(content)

    def _each(self, call: Callable[[str], None], names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_FETCHES_AT_ONCE, "dmray-fetch") as pool:
            list(pool.map(call, names))


def _write(path: Path, content: bytes) -> None:
    with as_storage_error(path, _CURE):
        write_atomic(path, content)
