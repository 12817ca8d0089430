"""Where a sweep's files are: in a folder that every machine mounts, or in an object store.

With an object store, each machine has working folders, one for each role (`dmray.files.cache_folder`):

$DMRAY_CACHE/storage/<digest of the URL>/<role>/<sweep>/      (default of $DMRAY_CACHE: ~/.cache/dmray)

    worker   the trials that train on this machine; their workers publish them to the store
    driver   the driver's copy of all trials, and the files that it writes itself
    reader   the copy of a report, a plan or an evaluation

The roles do not share a folder, so each file has one writer.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

from dmray.errors import SpecError, StorageError
from dmray.files import cache_folder, real_path, user_path
from dmray.records.folders import SweepFolder
from dmray.storage.store import Store

Role = Literal["worker", "driver", "reader"]
_SHORT_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")


def is_url(storage: str) -> bool:
    """Whether `storage` is an object store's URL; otherwise it is a folder."""
    return "://" in storage


def sweep_folder(storage: str, name: str, role: Role) -> SweepFolder:
    """The sweep's folder on this machine: in the storage itself if that is a folder, else the role's working folder.

    Raises:
        SpecError: the storage is neither: "s3:/bucket/x", as `Path` shortens an address.
    """
    if short := _SHORT_ADDRESS.match(storage):
        raise SpecError(f"storage {storage}: did you mean {short[0]}/{storage[short.end() :]}? (A folder: ./{storage})")
    if not is_url(storage):
        return SweepFolder(real_path(user_path(storage)), name)
    digest = hashlib.sha256(storage.rstrip("/").encode()).hexdigest()[:12]
    return SweepFolder(cache_folder() / "storage" / digest / role, name)


def open_store(storage: str, name: str) -> Store:
    """The folder `name` of an object store; the store is not contacted.

    Raises:
        StorageError: the URL's scheme is unknown.
        MissingPackageError: the package for the scheme is not installed.
    """
    return Store(f"{storage.rstrip('/')}/{name}")


def existing_sweep_store(storage: str, name: str) -> Store:
    """The folder of a sweep that a driver has started in an object store.

    Raises:
        StorageError: there is no such sweep (the message lists those that exist), or the store refuses access.
        MissingPackageError: the package for the URL's scheme is not installed.
        StoreUnavailableError: the store does not answer.
    """
    store = open_store(storage, name)
    if store.version(SweepFolder(Path(), name).manifest.name) is None:
        store.list("report")  # raises if the bucket itself does not exist
        others = Store(storage).folders("")
        if name in others:
            raise StorageError(f"{store.url}: its driver is just starting, or ended while starting; try again")
        there = f"{storage} has: {', '.join(others)}" if others else f"{storage} has no sweeps"
        raise StorageError(f"{store.url}: there is no such sweep; {there}")
    return store


def split_url(url: str) -> tuple[str, str]:
    """Split a sweep's URL into its storage and its name.

    Raises:
        StorageError: the URL has no folder for the storage or none for the sweep.
    """
    storage, _, name = url.rstrip("/").rpartition("/")
    if not is_url(f"{storage}/") or storage.endswith((":/", ":")) or not name:
        raise StorageError(f"{url}: not the URL of a sweep; a sweep's URL looks like s3://bucket/prefix/quickstart")
    return storage, name


def object_name(folder: SweepFolder, path: Path) -> str:
    """The name of a sweep's file in its store: its path relative to the sweep's folder, except for episode tables.

    A trial can have a thousand episode tables. They are kept outside `trials/`, so that listing `trials/` stays cheap.
    """
    parts = path.relative_to(folder.path).parts
    if len(parts) == 4 and (parts[0], parts[2]) == ("trials", "evaluations"):
        return f"evaluations/{parts[1]}/{parts[3]}"
    return "/".join(parts)
