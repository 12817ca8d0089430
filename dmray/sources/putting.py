"""Puts the file of a data set where all machines of a cluster read it: a shared folder, or an object store."""

from __future__ import annotations

import shutil
from pathlib import Path

from dmray.datasets import check_is_d4rl
from dmray.downloads import FetchSettings, Manifest, Progress, fetch, now, silent
from dmray.errors import DatasetError
from dmray.file_lock import file_lock
from dmray.files import (
    as_storage_error,
    download_folders,
    is_regular_file,
    partial,
    real_path,
    remove_parts_of,
    user_path,
)
from dmray.sources.locate import download_published, remote_file
from dmray.space import require_disk
from dmray.storage import StoredFile, entry_of_file, is_url
from dmray.tasks import entry_of

_LOCK_TIMEOUT_S = 3600.0
_CURE = "name a folder that can be written with --to"


def put_published(name: str, place: str, progress: Progress = silent) -> str:
    """Put the file of a published data set into `place`; returns its path or address there.

    A file that this machine has is taken; else it is downloaded: into that folder, or, for an object store, to this
    machine first, where it stays.

    Raises:
        DatasetError: it cannot be downloaded, is broken, or has other content than the one that is pinned in `place`.
        StorageError: `place` cannot be written.
    """
    entry = entry_of(name)
    if entry.file_name is None:
        raise DatasetError(
            f"{name}: Minari's data sets are folders of files, and --to puts single files; set "
            "MINARI_DATASETS_PATH to a folder that every machine mounts, and fetch it without --to"
        )
    if not is_url(place):
        folder = real_path(user_path(place, "--to"))
        here = [each / entry.file_name for each in download_folders() if is_regular_file(each / entry.file_name)]
        if here and not is_regular_file(folder / entry.file_name):
            return put_file(here[0], place)
        return str(fetch(remote_file(name), folder, FetchSettings.from_environment(), check_is_d4rl, progress))
    return _upload(download_published(name, progress), StoredFile(place, entry.file_name), entry.url)


def put_file(file: Path, place: str) -> str:
    """Put a file of one's own into `place`, under its name; returns its path or address there.

    Raises:
        DatasetError: it is not HDF5 with D4RL's arrays, or a file of this name with other content is pinned in `place`.
        StorageError: `place` cannot be written, or has no room.
    """
    check_is_d4rl(file)
    if is_url(place):
        return _upload(file, StoredFile(place, file.name), None)
    return str(_copy(file, real_path(user_path(place, "--to"))))


def _upload(file: Path, stored: StoredFile, url: str | None) -> str:
    stored.put(file, entry_of_file(file, url, now()))
    return stored.address


def _copy(file: Path, folder: Path) -> Path:
    path, manifest, entry = folder / file.name, Manifest(folder), entry_of_file(file, None, now())
    busy = "another process has been writing this file for an hour: wait for it, or end it and try again"
    lock = file_lock(folder / f".{path.name}.lock", _LOCK_TIMEOUT_S, busy, unwritable=_CURE)
    with as_storage_error(folder, _CURE), lock:
        manifest.check(path.name, entry.sha256)
        if not is_regular_file(path):
            remove_parts_of(path)
            require_disk(folder, entry.size, f"a copy of {file}", _CURE)
            if manifest.get(path.name) is None:  # before the file has its name, so that a kill leaves no unpinned file
                manifest.put(path.name, entry)
            with partial(path) as part:
                shutil.copyfile(file, part)
        elif entry_of_file(path, None, "").sha256 != entry.sha256:
            raise DatasetError(f"{path}: has other content than {file}; give the file another name, or remove that one")
    return path
