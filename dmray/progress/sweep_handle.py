"""Resolve a file, a folder or a URL to a sweep, for commands that run beside its driver, and find a trial in it."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dmray.coordination.commands import CommandKind, SweepCommand, next_command, read_command, send_command
from dmray.coordination.heartbeat import HEARTBEAT_NAME
from dmray.coordination.store_commands import StoreCommands
from dmray.coordination.sweep_lock import Driver, find_driver
from dmray.errors import StorageError
from dmray.files import real_path, user_path
from dmray.progress.progress import done_long_ago
from dmray.records import SweepFolder, TrialFolder
from dmray.registry import nearest
from dmray.shipped import shipped_sweeps
from dmray.specs import load_sweep
from dmray.storage import ReadOnlyView, Store, existing_sweep_store, is_url, split_url

_MOST_NAMES = 12


class SweepHandle:
    """A sweep in a folder, whose files are always up to date."""

    look_every_s = 1.0  # ledgers grow more slowly than that

    def __init__(self, folder: SweepFolder, where: str | None = None) -> None:
        """`where`: the place as messages name it; the folder if left out."""
        self.folder, self.where = folder, where or str(folder.path)

    def driver_and_command(self) -> tuple[Driver | None, SweepCommand | None]:
        """The driver, dead or alive, and the command that holds now."""
        return find_driver(self.folder), read_command(self.folder)

    def read_progress(self) -> None:
        """Bring into `folder` what a `Follower` reads, the driver's heartbeat, and what driver and workers do now."""

    def read_manifest(self) -> None:
        """Bring the manifest into `folder`."""

    def read_trial(self, trial: TrialFolder) -> dict[str, int]:
        """Bring the ledger, the log, the done marker and the phase of `trial` into its folder.

        Returns the sizes in bytes of all its files, by their names in the folder.
        """
        files = sorted(path for path in trial.path.rglob("*") if path.is_file())
        return {path.relative_to(trial.path).as_posix(): path.stat().st_size for path in files}

    def read_log(self, trial: TrialFolder) -> None:
        """Bring the log of `trial` into its folder, and the done marker if there is one."""

    def trial_ids(self) -> tuple[str, ...]:
        """The trials that were begun."""
        trials = self.folder.path / "trials"
        return tuple(sorted(path.name for path in trials.iterdir())) if trials.exists() else ()

    def send_command(self, kind: CommandKind) -> None:
        """Send the command that follows the one seen last.

        Raises:
            StorageError: another process sent a command at the same time.
        """
        send_command(self.folder, kind)


class StoreSweepHandle(SweepHandle):
    """A sweep in an object store. `folder` is a temporary folder with the files that were fetched last.

    Raises (all methods):
        StorageError: the store refuses, or what it holds cannot be read.
        StoreUnavailableError: the store does not answer.
    """

    look_every_s = 5.0  # workers publish every ten seconds

    def __init__(self, store: Store, folder: SweepFolder) -> None:
        super().__init__(folder, store.url)
        self._commands, self._view = StoreCommands(store), ReadOnlyView(store, folder)

    def driver_and_command(self) -> tuple[Driver | None, SweepCommand | None]:
        self._commands.download(self.folder)
        self._view.fetch(HEARTBEAT_NAME)
        return super().driver_and_command()

    def read_progress(self) -> None:
        self.driver_and_command()
        self.read_manifest()
        self._view.fetch(self.folder.phase.name)
        self._view.fetch_records(lambda trial: done_long_ago(trial) is not None)

    def read_manifest(self) -> None:
        if not self.folder.manifest.exists():
            self._view.fetch(self.folder.manifest.name)

    def read_trial(self, trial: TrialFolder) -> dict[str, int]:
        return self._view.fetch_trial(trial)

    def read_log(self, trial: TrialFolder) -> None:
        self._view.fetch_log(trial)

    def trial_ids(self) -> tuple[str, ...]:
        return self._view.trial_ids()

    def send_command(self, kind: CommandKind) -> None:
        if not self._commands.add(next_command(read_command(self.folder), kind)):
            now = self._commands.latest()
            other = f"{now.kind}, by {now.sent_by}" if now else "removed since"
            raise StorageError(f"{self.where}: another command came first ({other}); check the status and try again")


@contextmanager
def find_sweep(source: str, storage: str | None = None) -> Iterator[SweepHandle]:
    """The sweep that `locate` finds.

    Raises:
        SpecError, StorageError: as `locate` and `existing_sweep_store`. (A folder may be any.)
        StoreUnavailableError: the store does not answer.
    """
    place, name = locate(source, storage)
    if not is_url(place):
        yield SweepHandle(SweepFolder(Path(place), name))
        return
    store = existing_sweep_store(place, name)
    with tempfile.TemporaryDirectory(prefix="dmray-view-") as folder:
        yield StoreSweepHandle(store, SweepFolder(Path(folder), name))


def locate(source: str, storage: str | None = None) -> tuple[str, str]:
    """The storage and the name of a sweep: `source` is its folder, its address in an object store, or its file.

    A file's sweep is in `storage`, else in the storage that the file names. The file may be one of dmray's, by name.

    Raises:
        SpecError: it is a file, and no sweep file.
        StorageError: there is no such file, or it is an address and not of a sweep.
    """
    if is_url(source):
        return split_url(source)
    path = user_path(source)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as cause:  # no permission, or a name that no file can have
        reason = (isinstance(cause, OSError) and cause.strerror) or cause
        raise StorageError(f"{source}: cannot be read ({reason}); name a sweep's file or folder") from cause
    if is_folder:
        folder = real_path(path)
        return str(folder.parent), folder.name
    if not exists and source not in shipped_sweeps():
        near = _nearest_beside(path)
        raise StorageError(
            f"{source}: no such file or folder; "
            + (f"did you mean {near}? Else name " if near else "name ")
            + "a sweep's file, its folder <storage>/<sweep>, or its address s3://bucket/prefix/<sweep>"
        )
    sweep = load_sweep(path)  # by its name, if it is one of dmray's
    place = storage or sweep.storage
    return place if is_url(place) else str(real_path(user_path(place))), sweep.name


def _nearest_beside(path: Path) -> Path | None:
    """The file or folder with the most similar name in the same folder."""
    try:
        name = nearest(path.name, [each.name for each in path.parent.iterdir()])
    except OSError:
        return None
    return path.with_name(name) if name else None


def find_trial(sweep: SweepHandle, key: str, planned: Iterable[str] = ()) -> TrialFolder:
    """The trial of that id, or the only one whose id begins so, ends so (its hash), or has it inside.

    Trials that were begun are found, and those of `planned`.

    Raises:
        StorageError: there is none, or several; the nearest are named.
    """
    names = tuple(dict.fromkeys([*planned, *sweep.trial_ids()]))
    found = [name for name in names if name == key] or [name for name in names if name.startswith(key)]
    found = found or [name for name in names if name.endswith(key)] or [name for name in names if key and key in name]
    if len(found) == 1:
        return sweep.folder.trial(found[0])
    if found:
        raise StorageError(f"'{key}' is in the ids of {len(found)} trials; give more of one:{listed(found)}")
    near = difflib.get_close_matches(key, names, n=3, cutoff=0.3)
    cure = f"the nearest are:{listed(near)}" if near else f"there are {len(names)}:{listed(names)}"
    missing = f"there is no trial '{key}'" if planned else f"no trial '{key}' was begun"
    raise StorageError(f"{sweep.where}: {missing}; {cure}")


def listed(names: Sequence[str]) -> str:
    """The first few of these names, a line each, for a message."""
    more = f"\n  and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return "".join(f"\n  {name}" for name in names[:_MOST_NAMES]) + more
