"""A sweep of a store as somebody who looks on needs it: in a folder of this process, without weights and tables.

Small files are fetched when they are asked for; of files that grow, what was added since the last time. So a look at
hundreds of running trials costs a listing and the new lines of their ledgers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from dmray.files import write_atomic
from dmray.records.folders import SweepFolder, TrialFolder
from dmray.storage.place import object_name
from dmray.storage.store import Store

_FETCHES_AT_ONCE = 16
_END = 65_536  # of a ledger at first: its last records


class ReadOnlyView:
    """The glimpse in `folder` of the sweep in `store`. The folder is this object's alone.

    Raises (all methods):
        StorageError, StoreUnavailableError: as their names say. What was fetched before stays, and counts.
    """

    def __init__(self, store: Store, folder: SweepFolder) -> None:
        self.folder = folder
        self._store = store
        self._fetched: dict[str, int] = {}  # how far a growing object was read

    def trial_ids(self) -> tuple[str, ...]:
        """The trials that were begun."""
        return self._store.folders("trials")

    def fetch(self, name: str) -> None:
        """Make a small file what it is in the store."""
        content = self._store.read(name)
        if content is None:
            (self.folder.path / name).unlink(missing_ok=True)
        else:
            write_atomic(self.folder.path / name, content)

    def fetch_records(self, needless: Callable[[TrialFolder], bool]) -> None:
        """Bring markers, and the last records of ledgers, but for trials whose marker says enough.

        A ledger here may begin in the middle of the store's, with a whole line.
        """
        sizes = self._store.sizes("trials")
        trials = [self.folder.trial(trial_id) for trial_id in sorted({name.split("/")[1] for name in sizes})]
        markers = [object_name(self.folder, trial.done) for trial in trials if not trial.done.exists()]
        self._each(self.fetch, [name for name in markers if name in sizes])
        ledgers = [
            name
            for trial in trials
            if (name := object_name(self.folder, trial.ledger)) in sizes
            and (name in self._fetched or not needless(trial))
        ]
        self._each(lambda name: self._grow(name, sizes[name], _END), ledgers)

    def fetch_log(self, trial: TrialFolder) -> None:
        """Bring a trial's log and its marker; the marker first, so that the log beside it is whole."""
        sizes = self._store.sizes(object_name(self.folder, trial.path))
        done, log = (object_name(self.folder, path) for path in (trial.done, trial.log))
        if done in sizes:
            self.fetch(done)
        if log in sizes:
            self._grow(log, sizes[log])

    def _grow(self, name: str, size: int, end: int | None = None) -> None:
        """Add what is new of an object of `size` bytes; the first time all of it, or whole lines of its `end`."""
        known = self._fetched.get(name)
        if known == size:
            return
        path = self.folder.path / name
        if known is not None and known < size:
            content = self._store.read(name, known) or b""
            with path.open("ab") as stream:
                stream.write(content)
            self._fetched[name] = known + len(content)
            return
        start = max(0, size - end) if end is not None else 0
        content = self._store.read(name, start) or b""
        lines = content if start == 0 else content.partition(b"\n")[2]
        if start and not lines:  # the last record is longer than that
            start, lines = 0, self._store.read(name) or b""
            content = lines
        write_atomic(path, lines)
        self._fetched[name] = start + len(content)

    def _each(self, call: Callable[[str], None], names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_FETCHES_AT_ONCE, "glimpse") as pool:
            list(pool.map(call, names))
