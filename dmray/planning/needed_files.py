"""Which files a sweep needs: what is here, what is downloaded or recorded first, and how large it is. Fetches no file.

`published_sizes.csv` has the sizes of D4RL's files that TensorFlow Datasets records for the same addresses (its
checksums.tsv, tensorflow/datasets). The sizes of other files are known once they were downloaded.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from dmray.downloads import FetchSettings, forbidden
from dmray.errors import DatasetError
from dmray.files import download_folders, is_regular_file, user_path
from dmray.specs import DatasetSpec
from dmray.storage import stored_file
from dmray.tasks import MINARI_SCHEME, entry_of, recording_path, task_of

FileState = Literal["here", "download", "record", "missing"]


@dataclass(frozen=True)
class NeededFile:
    """The file of a data set. `size_bytes` None: not known. `source`: its address, path, or how it is recorded.

    `state` "download", "record": that is done when the sweep starts. "missing": a file of the user's that is not there,
    or one that DMRAY_OFFLINE does not let download.
    """

    dataset: str
    state: FileState
    size_bytes: int | None
    source: str


def needed_files(datasets: Sequence[DatasetSpec], recordings: Path) -> tuple[NeededFile, ...]:
    """The file of each data set. A data set of Minari counts as a download: only Minari knows whether it is here.

    Raises:
        DatasetError: DMRAY_OFFLINE is neither yes nor no.
        StorageError: a folder cannot be searched, or an object store that has a file does not answer.
    """
    offline = FetchSettings.from_environment().offline
    return tuple(_needed(dataset, recordings, offline) for dataset in datasets)


def _needed(dataset: DatasetSpec, recordings: Path, offline: bool) -> NeededFile:
    name = dataset.name
    if dataset.generate is not None:
        made = dataset.generate
        recording = recording_path(made, task_of(dataset), recordings)
        how = f"{made.transitions:,} transitions of {task_of(dataset).name}, {made.behaviour}"
        return _local(name, recording, "record", how)
    if (stored := stored_file(dataset)) is not None:
        try:
            copy, size = stored.copy(), stored.pinned().size
        except DatasetError as problem:
            return NeededFile(name, "missing", None, str(problem))
        return NeededFile(name, "download" if copy is None else "here", size, stored.address)
    if dataset.path is not None and not dataset.path.startswith(MINARI_SCHEME):
        return _local(name, user_path(dataset.path), "missing", dataset.path)
    url = dataset.path or entry_of(dataset.catalog_name).url
    if url.startswith(MINARI_SCHEME):
        return NeededFile(name, "download", None, url)
    file_name = url.rpartition("/")[2]
    for folder in download_folders():
        if is_regular_file(folder / file_name):
            return _local(name, folder / file_name, "download", url)
    if offline:
        folder = next(iter(download_folders()), Path())
        return NeededFile(name, "missing", None, forbidden(folder, url))
    return NeededFile(name, "download", _published_sizes().get(dataset.catalog_name), url)


def _local(name: str, path: Path, otherwise: FileState, source: str) -> NeededFile:
    """The file at `path`, or, if it is not there, what happens `otherwise`."""
    if not is_regular_file(path):
        return NeededFile(name, otherwise, None, source)
    return NeededFile(name, "here", path.stat().st_size, str(path))


@cache
def _published_sizes() -> dict[str, int]:
    with (files("dmray.planning") / "published_sizes.csv").open(encoding="utf-8") as stream:
        return {row["name"]: int(row["bytes"]) for row in csv.DictReader(stream)}
