"""Minari's data sets: flat observations and actions, such as those of mujoco/*.

A data set is a folder below $MINARI_DATASETS_PATH (~/.minari/datasets). It stores every episode by itself, and the
observations of an episode of T steps are T + 1: no action follows the last one.

`minari` downloads them and knows their formats. Its metadata are checked before it sees them, because it would make
whatever environment and however large an array they name. Episodes in HDF5 are read here, with the checks of all HDF5
files; those in other formats through `minari`.

Shapes: N transitions, S observation_dim, A action_dim, T steps of an episode.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dmray.datasets.checked_rows import (
    Allocate,
    FileRules,
    Rows,
    as_flags,
    check_finite,
    check_flags,
    check_numbers,
    episodes_of,
    in_memory,
)
from dmray.datasets.episodes import Episodes
from dmray.datasets.hdf5_arrays import Hdf5Array, open_hdf5
from dmray.datasets.minari_metadata import MinariMetadata, check_dataset_id, read_metadata
from dmray.errors import DatasetError, DmrayError
from dmray.escaping import printable
from dmray.file_lock import file_lock
from dmray.registry import nearest

_LOCK_TIMEOUT_S = 3600.0
_MOST_PACKED, _HARMLESS = 2000, 64 * 2**20  # as for the arrays of an HDF5 file
_NUMBERS, _FLAGS = ("observations", "actions", "rewards"), ("terminations", "truncations")


@dataclass(frozen=True)
class MinariFacts:
    """What a data set says about itself.

    Reference scores are undiscounted returns, as `minari.get_normalized_score` uses them. Of the published mujoco/*-v0
    sets none has any; then both are None.
    """

    dataset_id: str
    env_id: str | None  # the environment it was collected in
    observation_dim: int
    action_dim: int
    max_episode_steps: int | None
    reference_minimum: float | None
    reference_maximum: float | None


def minari_facts(dataset_id: str) -> MinariFacts:
    """The facts of a data set that is there; reads its metadata only.

    Raises:
        DatasetError: minari or the data set is missing, the data set is damaged, or its spaces are not flat.
    """
    dataset, metadata = _opened(dataset_id)
    environment = dataset.env_spec
    return MinariFacts(
        dataset_id=dataset_id,
        env_id=None if environment is None else environment.id,
        observation_dim=metadata.observation_dim,
        action_dim=metadata.action_dim,
        max_episode_steps=None if environment is None else environment.max_episode_steps,
        reference_minimum=metadata.reference_minimum,
        reference_maximum=metadata.reference_maximum,
    )


def minari_metadata_file(dataset_id: str) -> Path:
    """The file that minari writes last; when it changed, the data set changed."""
    return _root() / dataset_id / "data" / "metadata.json"


def read_minari(dataset_id: str, rules: FileRules, allocate: Allocate = in_memory) -> Episodes:
    """The episodes of a data set that is there, in its order. Beside the arrays, one episode at a time is in memory.

    An episode ends where it is stored to end; a termination (if the rules split on them) or a truncation before that
    ends it too. Of `rules`, only the sizes and `split_on_terminals` matter.

    Raises:
        DatasetError: minari or the data set is missing, the data set is damaged, not flat, of another task, or holds
            no episode or a value that is not finite; the message names data set, episode and row of the episode.
    """
    dataset, metadata = _opened(dataset_id)
    for name, found, dim in (
        ("observations", metadata.observation_dim, rules.observation_dim),
        ("actions", metadata.action_dim, rules.action_dim),
    ):
        if found != dim:
            raise DatasetError(
                f"{dataset_id}: {name} have {found} numbers a row, the task has {dim}; is it another task's data set?"
            )
    count = metadata.total_steps
    if count == 0:
        raise DatasetError(f"{dataset_id}: holds no episode")
    _check_size(dataset_id, count * (rules.observation_dim + rules.action_dim + 1))
    timeouts = np.zeros(count, dtype=bool)
    rows = Rows(
        observations=allocate("observations", (count, rules.observation_dim)),
        actions=allocate("actions", (count, rules.action_dim)),
        rewards=allocate("rewards", (count,)),
        terminals=np.zeros(count, dtype=bool),
        timeouts=timeouts,
    )
    filled = split = 0
    with _named(dataset_id):
        for episode in _stored_episodes(dataset_id, dataset, metadata):
            start, filled = filled, _append(dataset_id, rows, filled, episode)
            ends = rows.terminals[start:filled] & rules.split_on_terminals | timeouts[start:filled]
            split += bool(ends[:-1].any())
            timeouts[filled - 1] = True
    if filled != count:
        raise _damaged(dataset_id, f"its metadata say {count} steps, its episodes hold {filled}")
    notes = (f"episodes: {split:,} have an end before their last step, and are split there",) if split else ()
    return episodes_of(dataset_id, rows, rules, notes)


def download_minari(dataset_id: str) -> None:
    """Fetch the data set from Minari's server (or $MINARI_REMOTE), unless it is there; one process of a host does it.

    Raises:
        DatasetError: minari is missing, the server does not answer or does not have it, or what is there is damaged.
        StorageError: the folder cannot be written, or another process does not finish its download.
    """
    minari = _minari()
    check_dataset_id(dataset_id)
    root, folder = _root(), _root() / dataset_id
    lock = root / ".dmray-download.lock"
    if folder.exists() and not os.access(lock, os.W_OK):  # no process of dmray has downloaded here, or none can now
        _opened(dataset_id)
        return
    busy = "another process has been downloading for an hour: wait for it, or end it and try again"
    with file_lock(lock, _LOCK_TIMEOUT_S, busy, unwritable="name a folder that can be written in MINARI_DATASETS_PATH"):
        if folder.exists():  # looked at under the lock: what another process is still downloading looks damaged
            _opened(dataset_id)
            return
        try:
            minari.download_dataset(dataset_id)
        except ImportError as cause:
            raise DatasetError(f'{dataset_id}: {cause}; pip install "minari[hdf5,hf]" to download it') from cause
        except Exception as cause:  # its server's client decides which
            raise DatasetError(
                f"{dataset_id}: not downloaded ({type(cause).__name__}: {cause}). Where there is a network, "
                f"`minari download {dataset_id}`; then copy its folder to {folder}, or name the folder of all data "
                "sets in MINARI_DATASETS_PATH. A download that broke off: remove the folder first"
            ) from cause


@dataclass(frozen=True)
class _Episode:
    """A stored episode; each array is read, or stays in its file until it is copied."""

    where: str
    arrays: dict[str, np.ndarray | Hdf5Array]


def _append(dataset_id: str, rows: Rows, start: int, episode: _Episode) -> int:
    """Copy the episode to the rows from `start` on. Returns the row after its last."""
    arrays, where = episode.arrays, episode.where
    if len(arrays["rewards"].shape) == 0:
        raise _damaged(dataset_id, f"{where}: rewards are a single value")
    steps, space = arrays["rewards"].shape[0], len(rows.rewards) - start
    if not 0 < steps <= space:
        raise _damaged(dataset_id, f"{where} has {steps} steps, by its metadata 1 to {space} are left")
    wanted = {
        "observations": (steps + 1, *rows.observations.shape[1:]),
        "actions": (steps, *rows.actions.shape[1:]),
        **dict.fromkeys(("rewards", *_FLAGS), (steps,)),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise _damaged(dataset_id, f"{where}: {name} are {_x(arrays[name].shape)}, not {_x(shape)}")
    end = start + steps
    for name in _NUMBERS:
        target, array = getattr(rows, name)[start:end], arrays[name]
        check_numbers(f"{dataset_id}: {where}: {name}", array.dtype)
        if isinstance(array, Hdf5Array):
            array.check_whole()
            array.read_into(target)
        else:
            with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite, and is reported below
                target[:] = array[:steps]
        check_finite(f"{dataset_id}: {where}: {name}", target)
    for name, flags in zip(_FLAGS, (rows.terminals, rows.timeouts), strict=True):
        array = arrays[name]
        check_flags(f"{dataset_id}: {where}: {name}", array.dtype)  # before it is read
        values = array.read() if isinstance(array, Hdf5Array) else array
        assert flags is not None
        flags[start:end] = as_flags(f"{dataset_id}: {where}: {name}", values)
    return end


def _stored_episodes(dataset_id: str, dataset: Any, metadata: MinariMetadata) -> Iterator[_Episode]:
    names = (*_NUMBERS, *_FLAGS)
    if metadata.data_format == "hdf5":
        yield from _hdf5_episodes(dataset_id, metadata, names)
        return
    with _report_damage(dataset_id):
        for episode in dataset.iterate_episodes():
            yield _Episode(f"episode {episode.id}", {name: np.asarray(getattr(episode, name)) for name in names})


def _hdf5_episodes(dataset_id: str, metadata: MinariMetadata, names: tuple[str, ...]) -> Iterator[_Episode]:
    folder = _root() / dataset_id
    with open_hdf5(folder / "data" / "main_data.hdf5", f"remove {folder} and fetch it again") as source:
        if source.count() != metadata.total_episodes:
            raise _damaged(
                dataset_id, f"its metadata say {metadata.total_episodes} episodes, its file holds {source.count()}"
            )
        for index in range(metadata.total_episodes):
            found = {name: source.find(f"episode_{index}/{name}") for name in names}
            arrays = {name: array for name, array in found.items() if array is not None}
            if missing := [name for name in names if name not in arrays]:
                raise _damaged(dataset_id, f"episode {index}: no array '{missing[0]}'")
            yield _Episode(f"episode {index}", {**arrays})


@contextmanager
def _named(dataset_id: str) -> Iterator[None]:
    """Begin the messages about a file of the data set with its id."""
    try:
        yield
    except DatasetError as problem:
        text = str(problem)
        raise DatasetError(text if text.startswith(f"{dataset_id}: ") else f"{dataset_id}: {text}") from problem


def _check_size(dataset_id: str, numbers: int) -> None:
    """Check that the files can hold so many numbers as the metadata say."""
    folder = _root() / dataset_id / "data"
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if 4 * numbers > max(_HARMLESS, _MOST_PACKED * stored):
        raise _damaged(
            dataset_id,
            f"its metadata say {numbers:,} numbers ({4 * numbers / 1e9:.3g} GB), its files hold {stored:,} bytes",
        )


def _opened(dataset_id: str) -> tuple[Any, MinariMetadata]:
    """The data set as minari opens it; DatasetError where it is missing or cannot be read."""
    minari, root = _minari(), _root()
    check_dataset_id(dataset_id)
    if not (root / dataset_id / "data").is_dir():
        raise DatasetError(_not_there(dataset_id, root))
    try:
        metadata = read_metadata(dataset_id, minari_metadata_file(dataset_id))
    except ValueError as cause:
        raise _damaged(dataset_id, f"metadata.json: {cause}") from cause
    with _report_damage(dataset_id):
        return minari.load_dataset(dataset_id), metadata


@contextmanager
def _report_damage(dataset_id: str) -> Iterator[None]:
    """Report whatever minari and its formats raise for damaged data, which is not listed anywhere."""
    try:
        yield
    except (DmrayError, MemoryError):
        raise
    except ImportError as cause:  # of the library that the data set's own format needs
        raise DatasetError(f"{dataset_id}: {cause}") from cause
    except Exception as cause:
        text = printable(" ".join(f"{type(cause).__name__}: {cause}".split()))
        raise _damaged(dataset_id, text) from cause


def _damaged(dataset_id: str, why: str) -> DatasetError:
    return DatasetError(f"{dataset_id}: {why}; remove {_root() / dataset_id} and fetch it again")


def _not_there(dataset_id: str, root: Path) -> str:
    there = sorted(file.parent.parent.relative_to(root).as_posix() for file in root.rglob("data/metadata.json"))
    best = nearest(dataset_id, there)
    known = f"did you mean '{best}'?" if best else f"there are: {', '.join(there) or 'none'}"
    return (
        f"Minari data set '{dataset_id}' is not in {root}, {known} Fetch it with `minari download {dataset_id}` "
        '(pip install "minari[hdf5,hf]"), or name the folder that has it in MINARI_DATASETS_PATH'
    )


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _root() -> Path:
    """The folder of all data sets; minari makes it where it is missing.

    Raises:
        DatasetError: it is missing and cannot be made.
    """
    try:
        root: Path = _minari().storage.get_dataset_path()
    except OSError as cause:
        raise DatasetError(
            f"{cause.filename}: Minari's folder of data sets cannot be made ({cause.strerror or cause}); "
            "name a folder that can be written in MINARI_DATASETS_PATH"
        ) from cause
    return root


def _minari() -> ModuleType:
    try:
        import minari
    except ImportError as missing:
        raise DatasetError(f'minari cannot be imported ({missing}): pip install "minari[hdf5]"') from missing
    module: ModuleType = minari
    return module
