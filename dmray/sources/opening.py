"""Opens a data set for a trial: its episodes, and the task with what only the data can tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dmray.datasets import (
    Episodes,
    FileRules,
    MinariFacts,
    Subtask,
    mapped,
    minari_facts,
    minari_metadata_file,
    read_d4rl_hdf5,
    read_minari,
)
from dmray.errors import DatasetError
from dmray.file_lock import file_lock
from dmray.files import cache_folder
from dmray.sources.locate import fetch_minari, locate
from dmray.specs import DatasetSpec, content_hash
from dmray.tasks import MINARI_SCHEME, ReferenceScores, Task

_ROUNDING = 1e-3
_LOCK_TIMEOUT_S = 3600.0
READER_VERSION = 1  # raised when the same file is read to other episodes, so that cached arrays are not used


@dataclass(frozen=True)
class OpenedDataset:
    """`task` is the registered task with what only the data tell: the size of observations, Minari's reference scores.

    The arrays of `episodes` are mapped into memory: all trials of a node share them.
    """

    episodes: Episodes
    task: Task


def open_dataset(dataset: DatasetSpec, task: Task, recordings: Path) -> OpenedDataset:
    """The episodes of `dataset` and the task to evaluate them in.

    Raises:
        DatasetError: the data set is missing, broken, or of another task; the message says where to put which file.
    """
    place = locate(dataset, task, recordings)
    if place.startswith(MINARI_SCHEME):
        return _open_minari(place.removeprefix(MINARI_SCHEME), task)
    return open_file(Path(place), task)


def open_file(path: Path, task: Task) -> OpenedDataset:
    """The episodes of a file in D4RL's layout.

    Raises:
        DatasetError: the file is missing, broken, or of another task.
    """
    rules = file_rules(task)
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    status = path.stat()
    content = [str(path.resolve()), status.st_size, status.st_mtime_ns, repr(rules), READER_VERSION]
    with _arrays_folder(path.stem, content) as folder:
        episodes = mapped(folder, lambda allocate: read_d4rl_hdf5(path, rules, allocate))
    episodes = replace(episodes, notes=(*episodes.notes, *_out_of_reach(episodes.actions, task.action_limit)))
    return OpenedDataset(episodes, task.with_zeros(episodes.observations.shape[1] - task.observation_dim))


def file_rules(task: Task) -> FileRules:
    """How files of `task` are to be read."""
    return FileRules(
        observation_dim=task.observation_dim,
        action_dim=task.action_dim,
        horizon=task.horizon,
        split_on_terminals=task.splits_on_terminals,
        appendix_dim=task.appendix_dim,
        pay_once=tuple(Subtask(**goal._asdict()) for goal in task.subtasks),
        ends_at_first_reward=task.ends_at_first_reward,
    )


def _out_of_reach(actions: np.ndarray, limit: float) -> Iterator[str]:
    """A note on actions beyond the limit, which no policy can repeat: its Tanh ends at the limit."""
    beyond = int((np.abs(actions).max(axis=1) > limit * (1 + _ROUNDING)).sum())
    if beyond:
        yield f"actions: {beyond:,} of {len(actions):,} go beyond ±{limit:g}, where policies end and simulators clip"


def _open_minari(dataset_id: str, task: Task) -> OpenedDataset:
    fetch_minari(dataset_id)
    facts = minari_facts(dataset_id)
    if facts.env_id not in (None, task.env_id):
        raise DatasetError(f"{dataset_id}: recorded in {facts.env_id}, but {task.name} is evaluated in {task.env_id}")
    if facts.max_episode_steps not in (None, task.horizon):
        raise DatasetError(
            f"{dataset_id}: episodes of {facts.max_episode_steps} steps at most, but {task.name} has {task.horizon}"
        )
    file = minari_metadata_file(dataset_id)
    status = file.stat()
    content = [str(file), status.st_size, status.st_mtime_ns, READER_VERSION]
    with _arrays_folder(dataset_id.replace("/", "-"), content) as folder:
        episodes = mapped(folder, lambda allocate: read_minari(dataset_id, file_rules(task), allocate))
    return OpenedDataset(episodes, replace(task, reference=_reference(facts) or task.reference))


def _reference(facts: MinariFacts) -> ReferenceScores | None:
    if facts.reference_minimum is None or facts.reference_maximum is None:
        return None
    return ReferenceScores(facts.reference_minimum, facts.reference_maximum, f"Minari {facts.dataset_id}")


@contextmanager
def _arrays_folder(stem: str, content: list[Any]) -> Iterator[Path]:
    """Where the arrays of a source of that content are kept on this machine; while they are missing, held for writing.

    Raises:
        StorageError: the arrays are missing and the folder cannot be written, or another process does not finish them.
    """
    folder = cache_folder() / "arrays" / f"{stem}-{content_hash(content)[:12]}"
    if folder.is_dir():
        yield folder
        return
    busy = f"another process has been reading {stem} for an hour: wait for it, or end it and try again"
    lock = folder.with_name(f".{folder.name}.lock")
    with file_lock(lock, _LOCK_TIMEOUT_S, busy, unwritable="set DMRAY_CACHE to a folder that can be written"):
        yield folder
