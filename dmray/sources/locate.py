"""The file that holds a data set: named by path, downloaded before, downloaded now, or recorded."""

from __future__ import annotations

import os
from pathlib import Path

from dmray.datasets import check_is_d4rl, download_minari, minari_metadata_file
from dmray.downloads import FetchSettings, Progress, RemoteFile, fetch, silent
from dmray.errors import StorageError
from dmray.files import download_folders, is_regular_file, user_path
from dmray.records.phase import PhaseName
from dmray.sources.recordings import recorded_file
from dmray.specs import DatasetSpec
from dmray.storage import stored_file
from dmray.tasks import MINARI_SCHEME, Task, entry_of, recording_path


def locate(dataset: DatasetSpec, task: Task, recordings: Path) -> str:
    """The path of the data set's HDF5 file, fetched or recorded first where it is missing; or its `minari://` address.

    Raises:
        DatasetError: the file is missing and cannot be fetched; the message says where it was looked for.
        StoreUnavailableError: it is in an object store that does not answer.
    """
    if dataset.generate is not None:
        return str(recorded_file(dataset.generate, task, recordings))
    if (stored := stored_file(dataset)) is not None:
        return str(stored.fetch())
    if dataset.path is None:
        return fetch_published(dataset.catalog_name)
    return dataset.path if dataset.path.startswith(MINARI_SCHEME) else str(user_path(dataset.path).absolute())


def phase_of_locating(dataset: DatasetSpec, task: Task, recordings: Path) -> PhaseName:
    """Whether `locate` records the data set, downloads it, or finds it on this machine, as a phase for people."""
    if dataset.generate is not None:
        return (
            "opening_data" if os.path.exists(recording_path(dataset.generate, task, recordings)) else "recording_data"
        )
    if (stored := stored_file(dataset)) is not None:
        return "fetching_data" if stored.copy() is None else "opening_data"
    place = dataset.path or entry_of(dataset.catalog_name).url
    if place.startswith(MINARI_SCHEME):
        files = [minari_metadata_file(place.removeprefix(MINARI_SCHEME))]
    elif dataset.path is not None:
        return "opening_data"
    else:
        files = [folder / remote_file(dataset.catalog_name).name for folder in download_folders()]
    return "opening_data" if any(os.path.exists(file) for file in files) else "fetching_data"


def fetch_published(name: str, progress: Progress = silent) -> str:
    """The file of a published data set, from one of the folders or by download; for Minari its address, after download.

    `name`: that of the data set, or any address of Minari.

    If DMRAY_DATASETS is the URL of an object store, the file is fetched from there or not at all.

    Raises:
        DatasetError: it cannot be fetched from anywhere; the message lists what was tried.
        SpecError: there is no such data set.
        StorageError: there is no folder to keep it in, or that cannot be written.
    """
    url = name if name.startswith(MINARI_SCHEME) else entry_of(name).url
    if url.startswith(MINARI_SCHEME):
        fetch_minari(url.removeprefix(MINARI_SCHEME))
        return url
    if (stored := stored_file(DatasetSpec(name=name))) is not None:
        return str(stored.fetch(progress))
    return str(download_published(name, progress))


def download_published(name: str, progress: Progress = silent) -> Path:
    """The file of a data set that D4RL published, from a folder of this machine, a mirror or D4RL's server.

    Raises:
        DatasetError: it cannot be fetched from anywhere; the message lists what was tried.
        StorageError: there is no folder to keep it in, or that cannot be written.
    """
    remote, folders = remote_file(name), download_folders()
    if not folders:
        raise StorageError(f"{name}: there is no home folder to keep it in; name a folder in DMRAY_DATASETS")
    found = [folder / remote.name for folder in folders if is_regular_file(folder / remote.name)]
    if found and found[0].parent != folders[0]:
        return found[0]
    return fetch(remote, folders[0], FetchSettings.from_environment(), check_is_d4rl, progress)


def fetch_minari(dataset_id: str) -> None:
    """Download the data set through minari, unless it is there or $DMRAY_OFFLINE forbids it.

    Raises:
        DatasetError: it cannot be downloaded.
    """
    if not FetchSettings.from_environment().offline:
        download_minari(dataset_id)


def remote_file(name: str) -> RemoteFile:
    """A published data set of D4RL as a download."""
    entry = entry_of(name)
    assert entry.file_name is not None, "a data set of Minari"
    return RemoteFile(entry.file_name, entry.url)
