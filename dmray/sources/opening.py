"""Opens a data set for a trial: its episodes, and the task with what only the data can tell."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import dmray.datasets
from dmray.datasets import (
    Episodes,
    FileRules,
    MinariFacts,
    Subtask,
    find_mapped,
    in_available_memory,
    minari_facts,
    minari_metadata_file,
    part_of,
    read_d4rl_hdf5,
    read_minari,
    read_sizes,
    write_mapped,
)
from dmray.datasets.mapped import Read
from dmray.downloads import Manifest
from dmray.errors import DatasetError, SpecError, StorageError
from dmray.file_lock import file_lock
from dmray.files import cache_folder, is_full, is_regular_file, remove_stale_parts
from dmray.sources.content import content_digest
from dmray.sources.locate import fetch_minari, locate
from dmray.specs import DatasetSpec, content_hash
from dmray.tasks import MINARI_SCHEME, TASKS, ReferenceScores, Task, tasks_with_sizes

_ROUNDING = 1e-3
_LOCK_TIMEOUT_S = 3600.0
_CURE = "set DMRAY_CACHE to a folder that can be written"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedDataset:
    """`task` is the registered task with what only the data tell: the size of observations, Minari's reference scores.

    The arrays of `episodes` are mapped into memory: all trials of a node share them.
    """

    episodes: Episodes
    task: Task


def open_dataset(dataset: DatasetSpec, task: Task, recordings: Path, *, cached: bool = True) -> OpenedDataset:
    """The episodes of `dataset` and the task to evaluate them in. `cached`: see `open_file`.

    Raises:
        DatasetError: the data set is missing, broken, or of another task; the message says where to put which file.
        StorageError: the disk or the memory has no room for its arrays.
    """
    place = locate(dataset, task, recordings)
    if place.startswith(MINARI_SCHEME):
        return _open_minari(place.removeprefix(MINARI_SCHEME), task, cached, dataset.fraction)
    return open_file(Path(place), task, cached=cached, fraction=dataset.fraction)


def open_file(path: Path, task: Task, *, cached: bool = True, fraction: float = 1.0) -> OpenedDataset:
    """The episodes of a file in D4RL's layout: the arrays that were read before from the same bytes, if `cached`.

    `fraction`: the part of the episodes that is kept.

    Nothing is written beside the file. If no folder for a cache can be written, the arrays are plain arrays in memory.

    Raises:
        DatasetError: the file is missing, broken, of another task, or not the one that was fetched.
        StorageError: the disk or the memory has no room for the arrays.
    """
    rules = file_rules(task)
    if not is_regular_file(path):
        raise DatasetError(f"{path}: no such file")
    source = _Source(path.stem, str(path), (path,), content_digest((path,)))
    Manifest(path.parent).check(path.name, source.digest)

    def read(allocate: Any) -> Episodes:
        episodes = read_d4rl_hdf5(path, rules, allocate)
        return replace(episodes, notes=(*episodes.notes, *_out_of_reach(episodes.actions, task.action_limit)))

    reading, part = _in_part(source, fraction, [repr(rules), task.action_limit], read)
    episodes = _episodes(source, reading, part, cached)
    return OpenedDataset(episodes, task.with_zeros(episodes.observations.shape[1] - task.observation_dim))


def task_of_file(path: Path) -> tuple[Task, str]:
    """The task of a file, and how it was found: the file says so, or it is the only task with rows of these sizes.

    Raises:
        DatasetError: the file cannot be read.
        SpecError: no task or several have rows of these sizes.
    """
    sizes = read_sizes(path)
    rows = f"rows of {sizes.observation_dim} observed numbers and {sizes.action_dim} of an action"
    if sizes.recorded_in is not None and sizes.recorded_in in TASKS:
        return TASKS[sizes.recorded_in], "recorded by dmray in this task"
    tasks = tasks_with_sizes(sizes.observation_dim, sizes.action_dim)
    if not tasks:
        raise SpecError(f"{path}: {rows}, as in no task; check the file, or name its --task")
    if len(tasks) > 1:
        names = ", ".join(task.name for task in tasks)
        raise SpecError(f"{path}: {rows}, as in {len(tasks)} tasks; choose one with --task: {names}")
    return tasks[0], f"the only task with {rows}"


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


def _open_minari(dataset_id: str, task: Task, cached: bool, fraction: float) -> OpenedDataset:
    fetch_minari(dataset_id)
    facts = minari_facts(dataset_id)
    if facts.env_id not in (None, task.env_id):
        raise DatasetError(f"{dataset_id}: recorded in {facts.env_id}, but {task.name} is evaluated in {task.env_id}")
    if facts.max_episode_steps not in (None, task.horizon):
        raise DatasetError(
            f"{dataset_id}: episodes of {facts.max_episode_steps} steps at most, but {task.name} has {task.horizon}"
        )
    folder = minari_metadata_file(dataset_id).parent
    files = tuple(sorted(file for file in folder.rglob("*") if file.is_file()))
    source = _Source(dataset_id.replace("/", "-"), dataset_id, files, content_digest(files))
    rules = file_rules(task)
    reading, read = _in_part(source, fraction, [repr(rules)], lambda allocate: read_minari(dataset_id, rules, allocate))
    episodes = _episodes(source, reading, read, cached)
    return OpenedDataset(episodes, replace(task, reference=_reference(facts) or task.reference))


def _reference(facts: MinariFacts) -> ReferenceScores | None:
    if facts.reference_minimum is None or facts.reference_maximum is None:
        return None
    return ReferenceScores(facts.reference_minimum, facts.reference_maximum, f"Minari {facts.dataset_id}")


@dataclass(frozen=True)
class _Source:
    """What is read: a name for its arrays' folder, one for messages, its files, and the digest of their content."""

    stem: str
    name: str
    files: Sequence[Path]
    digest: str


def _in_part(source: _Source, fraction: float, reading: list[Any], read: Read) -> tuple[list[Any], Read]:
    """How to read a part of the data set. The whole one is read into memory, and only the part is kept."""
    if fraction == 1:
        return reading, read
    return [*reading, fraction], lambda allocate: part_of(read(in_available_memory(source.name)), fraction, source.name)


def _episodes(source: _Source, reading: list[Any], read: Read, cached: bool) -> Episodes:
    """The episodes that `read` gives; if `cached`, mapped from the arrays of equal bytes and `reading`, how to read.

    Raises:
        StorageError: there is no room for the arrays, or another process does not finish them.
    """

    def checked(allocate: Any) -> Episodes:
        episodes = read(allocate)
        if content_digest(source.files) != source.digest:
            raise DatasetError(f"{source.name}: changed while it was read; wait until it is written, then try again")
        return episodes

    if cached:
        try:
            return _mapped_episodes(source, reading, checked)
        except _NoCacheError as cause:
            _log.warning("%s. Each process reads %s into its own memory; %s", cause, source.name, _CURE)
    return checked(in_available_memory(source.name))


def _mapped_episodes(source: _Source, reading: list[Any], read: Read) -> Episodes:
    """The episodes of the arrays that were read before, without a lock; else read now, by one process at a time."""
    arrays = _arrays_folder()
    folder = arrays / f"{source.stem}-{content_hash([source.digest, reading, _reader()])[:16]}"
    if (found := find_mapped(folder)) is not None:
        return found
    _try_to_write(arrays)
    busy = f"another process has been reading {source.name} for an hour: wait for it, or end it and try again"
    with file_lock(folder.with_name(f".{folder.name}.lock"), _LOCK_TIMEOUT_S, busy, unwritable=_CURE):
        if (found := find_mapped(folder)) is not None:
            return found
        remove_stale_parts(arrays)
        return write_mapped(folder, read, source.name)


class _NoCacheError(Exception):
    """There is no folder for arrays, or it cannot be written."""


def _arrays_folder() -> Path:
    try:
        return cache_folder() / "arrays"
    except StorageError as cause:
        raise _NoCacheError(f"{cause}") from cause


def _try_to_write(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as cause:
        if is_full(cause):
            raise StorageError(f"{folder}: the disk is full; free some space, or {_CURE}") from cause
        raise _NoCacheError(f"{folder}: cannot be written ({cause.strerror or cause})") from cause


@cache
def _reader() -> str:
    """A digest of the code that reads files: arrays that another version has read are not used."""
    folder = Path(dmray.datasets.__file__).parent
    sources = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.py")}
    return content_hash([dmray.__version__, sources])
