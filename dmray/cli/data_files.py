"""What `dmray data verify` and `stats` do with a file.

Apart from `dmray.cli.data`, because reading and replaying data imports NumPy, torch and simulators.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dmray.datasets import WARNING
from dmray.downloads import verify
from dmray.errors import DatasetError, EngineError, SpecError
from dmray.files import data_store_url, download_folders, is_regular_file, user_path
from dmray.registry import lookup
from dmray.rollout import furthest_number, replay_errors
from dmray.sources import OpenedDataset, open_dataset, open_file, task_of_file
from dmray.specs import DatasetSpec
from dmray.tasks import DATASETS, TASKS, entry_of

_REPLAYED_STEPS, _REPLAY_TOLERANCE = 20, 1e-3
_STARTS = 16


def read_dataset(name: str, task: str | None) -> tuple[OpenedDataset, list[str]]:
    """Read a file, of `task` or of the task that fits it, or a published data set that is on this machine.

    Arrays that were read before are not used. Returns a note too if the task was looked for.

    Raises:
        DatasetError: it is missing or broken. SpecError: its task is not known.
    """
    if task is not None:
        return open_file(user_path(name), lookup("task", task, TASKS, SpecError), cached=False), []
    if name not in DATASETS and is_regular_file(Path(name)):
        found, why = task_of_file(Path(name))
        return open_file(Path(name), found, cached=False), [f"task {found.name}: {why}"]
    entry = entry_of(name)
    if entry.file_name is not None and data_store_url() is None and _folder_with(entry.file_name) is None:
        raise DatasetError(f"not on this machine: python -m dmray.data fetch {name}")
    return open_dataset(DatasetSpec(name=name), TASKS[entry.task], Path(), cached=False), []


def check_dataset(name: str, task: str | None, replay: bool) -> tuple[int, list[str]]:
    """Check all values, the checksum, and that the simulator reproduces the episodes. Returns transitions and notes.

    Raises:
        DatasetError: a check failed. SpecError: the task is not known.
    """
    opened, notes = read_dataset(name, task)
    _check_starts(opened)
    checksum = [] if task is not None else _checksum(name)
    replayed = _replayed(opened) if replay else []
    return opened.episodes.num_transitions, [*notes, *checksum, *opened.episodes.notes, *replayed]


def needs_attention(note: str) -> bool:
    """Whether a note of `check_dataset` is a warning."""
    return note.startswith(WARNING)


def statistics(opened: OpenedDataset) -> dict[str, tuple[float, ...]]:
    """Mean, deviation, minimum, median and maximum of what an episode or a row has."""
    episodes, returns = opened.episodes, opened.episodes.returns()
    values = {
        "episode length": episodes.lengths,
        "return": returns,
        "normalized score": np.array([opened.task.reference.normalize(value) for value in returns]),
        "reward": episodes.rewards,
        "observation": episodes.observations,
        "action": episodes.actions,
    }
    return {label: _summary(array) for label, array in values.items()}


def _summary(values: np.ndarray) -> tuple[float, ...]:
    return values.mean(dtype=np.float64), values.std(dtype=np.float64), values.min(), np.median(values), values.max()


def _folder_with(file_name: str) -> Path | None:
    return next((folder for folder in download_folders() if is_regular_file(folder / file_name)), None)


def _checksum(name: str) -> list[str]:
    """The note on the checksum of a published file, from the manifest in its folder."""
    if data_store_url() is not None and name in DATASETS:
        return [f"sha256 as it is pinned in {data_store_url()}"]
    file_name = DATASETS[name].file_name if name in DATASETS else None
    folder = None if file_name is None else _folder_with(file_name)
    return [] if file_name is None or folder is None else [str(verify(file_name, folder))]


def _check_starts(opened: OpenedDataset) -> None:
    """Compare the simulator's first observations with the mean and deviation of the file's observations.

    Raises:
        DatasetError: a number of an observation is far from its mean.
    """
    try:
        number = furthest_number(opened.task, opened.episodes, _STARTS)
    except EngineError:  # the replay reports it
        return
    if number.is_far:
        raise DatasetError(f"{number}. Is it the file of another task?")


def _replayed(opened: OpenedDataset) -> list[str]:
    """Replay recorded actions in the simulator. Returns a note on the result.

    Raises:
        DatasetError: the simulator reproduces less than half of the episodes.
    """
    try:
        errors = replay_errors(opened.task, opened.episodes, _REPLAYED_STEPS).max(axis=1)
    except EngineError as cannot:
        return [f"not replayed: {cannot}"]
    same = int((errors < _REPLAY_TOLERANCE).sum())
    result = (
        f"{same} of {len(errors)} replayed episodes stay within {_REPLAY_TOLERANCE:g} for {_REPLAYED_STEPS} steps "
        f"(median {np.median(errors):.1g})"
    )
    if same < len(errors) / 2:
        raise DatasetError(f"{opened.task.env_id} does not reproduce it: {result}. Is it the file of another task?")
    return [f"{opened.task.env_id} reproduces it: {result}"]
