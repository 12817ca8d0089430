"""Where a sweep is: a folder that every machine sees, or an object store with working folders on each machine.

$DMRAY_CACHE/storage/<digest of the URL>/<role>/<sweep>/      (`dmray.files.cache_folder`)

    worker   one trial's files are written here by its worker, and published from here
    driver   what the driver has pulled of all trials, and what it writes itself
    reader   the same for whoever only looks: a report, a plan, an evaluation

Each file has one writer, so no role ever has to guess what another one of the same machine meant.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from dmray.errors import StorageError
from dmray.files import cache_folder
from dmray.records.folders import SweepFolder
from dmray.storage.store import Store

Role = Literal["worker", "driver", "reader"]


def is_url(storage: str) -> bool:
    """Whether a sweep's `storage` is an object store."""
    return "://" in storage


def sweep_folder(storage: str, name: str, role: Role) -> SweepFolder:
    """Where the sweep's files are on this machine: the storage itself if it is a folder."""
    if not is_url(storage):
        return SweepFolder(Path(storage).expanduser().resolve(), name)
    digest = hashlib.sha256(storage.rstrip("/").encode()).hexdigest()[:12]
    return SweepFolder(cache_folder() / "storage" / digest / role, name)


def store_of(storage: str, name: str) -> Store:
    """The sweep's part of an object store.

    Raises:
        StorageError: no such scheme.
        MissingPackageError: its package is not installed.
    """
    return Store(f"{storage.rstrip('/')}/{name}")


def begun_sweep(storage: str, name: str) -> Store:
    """The sweep's part of an object store, where a driver began it.

    Raises:
        StorageError: none did; the sweeps that are there are named. Or as `store_of`.
        StoreUnavailableError: the store does not answer.
    """
    store = store_of(storage, name)
    if store.version(SweepFolder(Path(), name).manifest.name) is None:
        store.list("report")  # says so if it is the bucket that is missing
        others = Store(storage).folders("")
        if name in others:
            raise StorageError(f"{store.url}: its driver starts just now, or ended before it could; look again")
        there = f"in {storage} there are: {', '.join(others)}" if others else f"nothing is in {storage}"
        raise StorageError(f"{store.url}: no sweep was begun here; {there}")
    return store


def split_url(url: str) -> tuple[str, str]:
    """A sweep's address as the `storage` and the name of it.

    Raises:
        StorageError: it names no folder of a store.
    """
    storage, _, name = url.rstrip("/").rpartition("/")
    if not is_url(f"{storage}/") or storage.endswith((":/", ":")) or not name:
        raise StorageError(f"{url}: name a sweep, for example s3://bucket/prefix/quickstart")
    return storage, name


def object_name(folder: SweepFolder, path: Path) -> str:
    """What a sweep's file is called in its store: its path, but for episode tables.

    There can be a thousand tables a trial. They are kept beside `trials/`, so that listing that stays cheap.
    """
    parts = path.relative_to(folder.path).parts
    if len(parts) == 4 and (parts[0], parts[2]) == ("trials", "evaluations"):
        return f"evaluations/{parts[1]}/{parts[3]}"
    return "/".join(parts)
