"""Data files in an object store: put there once, then fetched once by each machine that reads them.

    <url>/hopper_medium-v2.hdf5      the file
    <url>/dmray-manifest.json        its checksum, which pins it

The copies of a machine are in $DMRAY_CACHE/data/<checksum>/. So a new file of the same name is another copy, and who
reads the old one is not disturbed. Each time that a copy is used, the store is asked whether its file was written
since; if so, the file is fetched and checked again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dmray.downloads import (
    MANIFEST_NAME,
    FetchSettings,
    InterruptedDownloadError,
    Manifest,
    ManifestEntry,
    Progress,
    entries_in,
    entry_in,
    fetch_pinned,
    sha256_of,
    silent,
)
from dmray.errors import DatasetError, StoreUnavailableError
from dmray.file_lock import file_lock
from dmray.files import as_storage_error, cache_folder, data_store_url, write_atomic
from dmray.specs import DatasetSpec
from dmray.storage.place import is_url
from dmray.storage.store import Store
from dmray.tasks import MINARI_SCHEME, entry_of

_LOCK_TIMEOUT_S = 3600.0
_TRIES = 5
_CURE = "set DMRAY_CACHE to a folder that can be written"


@dataclass(frozen=True)
class StoredFile:
    """The file `name` in the folder `url` of an object store. `dataset`: its name if it is published.

    Raises (all methods):
        DatasetError: the store does not have it, or not with the pinned content; the message says how to put it there.
        StorageError: the store refuses access, or this machine has no room or no folder for a copy.
        StoreUnavailableError: the store does not answer.
    """

    url: str
    name: str
    dataset: str | None = None

    @property
    def address(self) -> str:
        return f"{self.url}/{self.name}"

    def pinned(self) -> ManifestEntry:
        """What the file has to be. The store is asked whether it has a file of that size."""
        return self._asked()[0]

    def copy(self) -> Path | None:
        """The copy on this machine, if there is one of what the store has now; fetches nothing."""
        pinned, version = self._asked()
        path = _copy_of(self.name, pinned)
        return path if _version_of(path) == version else None

    def fetch(self, progress: Progress = silent) -> Path:
        """The copy on this machine; fetched first if it is not there, by one process at a time."""
        pinned, version = self._asked()
        path = _copy_of(self.name, pinned)
        if _version_of(path) == version:
            return path
        busy = "another process has been fetching this file for an hour: wait for it, or end it and try again"
        lock = file_lock(path.with_name(f".{path.name}.lock"), _LOCK_TIMEOUT_S, busy, unwritable=_CURE)
        try:
            with as_storage_error(path.parent, _CURE), lock:
                if _version_of(path) != version:
                    # Not a download of the publisher's file, so DMRAY_MIRRORS and DMRAY_OFFLINE are not meant.
                    fetch_pinned(self.address, path, pinned, FetchSettings(), progress)
                    Manifest(path.parent).put(path.name, pinned)
                    write_atomic(_version_file(path), version.encode())
        except InterruptedDownloadError as problem:
            raise StoreUnavailableError(f"{self.address}: {problem}") from problem
        return path

    def put(self, file: Path, entry: ManifestEntry) -> bool:
        """Upload `file` and pin it. Returns False if the store has it already.

        Raises:
            DatasetError: a file of this name with other content is pinned.
        """
        store, there = Store(self.url), self._entry()
        if there is not None and there.sha256 != entry.sha256:
            raise DatasetError(
                f"{self.address}: sha256 {there.sha256} is pinned there, but {file} has {entry.sha256}; give the file "
                f"another name, or remove its entry from {self.url}/{MANIFEST_NAME} to replace it"
            )
        if there is not None and self._version(there) is not None:
            return False
        store.upload(self.name, file)
        for _ in range(_TRIES):  # another upload at the same moment may overwrite the manifest
            entries = self._entries() | {self.name: asdict(entry)}
            store.write(MANIFEST_NAME, f"{json.dumps(dict(sorted(entries.items())), indent=2)}\n".encode())
            if (written := self._entry()) is not None and written.sha256 == entry.sha256:
                return True
        raise DatasetError(f"{self.url}/{MANIFEST_NAME}: other uploads keep on replacing it; wait for them, try again")

    def _asked(self) -> tuple[ManifestEntry, str]:
        """The pinned entry, and the version of the object."""
        pinned = self._entry()
        cure = f"put it there: python -m dmray.data fetch {self.dataset or self.name} --to {self.url}"
        if pinned is None:
            raise DatasetError(f"{self.address}: not in {MANIFEST_NAME} there; {cure}")
        version = self._version(pinned)
        if version is None:
            raise DatasetError(f"{self.address}: is pinned, but the file is missing or has another size; {cure}")
        return pinned, version

    def _entry(self) -> ManifestEntry | None:
        return entry_in(self._entries(), self.name, f"{self.url}/{MANIFEST_NAME}")

    def _entries(self) -> dict[str, dict[str, object]]:
        content = Store(self.url).read(MANIFEST_NAME)
        return {} if content is None else entries_in(content, f"{self.url}/{MANIFEST_NAME}")

    def _version(self, pinned: ManifestEntry) -> str | None:
        """Changes with every write to the object; None if it is missing or not of the pinned size."""
        version = Store(self.url).version(self.name)
        return f"{self.address} {version}" if version is not None and version.endswith(f"-{pinned.size}") else None


def stored_file(dataset: DatasetSpec) -> StoredFile | None:
    """The file of a data set that is in an object store: its `path` is a URL, or it is published and DMRAY_DATASETS
    is one; None for every other data set, Minari's included.
    """
    if dataset.generate is not None:
        return None
    if dataset.path is not None:
        if dataset.path.startswith(MINARI_SCHEME) or not is_url(dataset.path):
            return None
        url, _, name = dataset.path.rpartition("/")
        return StoredFile(url, name)
    store = data_store_url()
    file_name = None if store is None else entry_of(dataset.catalog_name).file_name
    return None if store is None or file_name is None else StoredFile(store, file_name, dataset.catalog_name)


def entry_of_file(file: Path, url: str | None, fetched_at: str) -> ManifestEntry:
    """What pins a local file: the entry of its folder's manifest if it has one, else a new one.

    Raises:
        DatasetError: it cannot be read, or it is not as it was pinned.
    """
    digest, manifest = sha256_of(file), Manifest(file.parent)
    manifest.check(file.name, digest)
    return manifest.get(file.name) or ManifestEntry(digest, file.stat().st_size, url, fetched_at)


def _copy_of(name: str, pinned: ManifestEntry) -> Path:
    return cache_folder() / "data" / pinned.sha256[:16] / name


def _version_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.version")


def _version_of(path: Path) -> str | None:
    """The version of the object that the copy is of; None if there is no copy."""
    try:
        return _version_file(path).read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, ValueError):
        return None
