"""Minari's data sets, read through `minari` itself: flat observations and actions, such as those of mujoco/*.

A data set is a folder below $MINARI_DATASETS_PATH (~/.minari/datasets). It stores every episode by itself, and the
observations of an episode of T steps are T + 1: no action follows the last one.

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

from dmray.datasets.d4rl_hdf5 import Allocate, FileRules, episode_starts, in_memory
from dmray.datasets.episodes import Episodes
from dmray.errors import DatasetError
from dmray.file_lock import file_lock
from dmray.registry import nearest

_LOCK_TIMEOUT_S = 3600.0
_DAMAGE = (OSError, KeyError, ValueError, TypeError, AssertionError)  # what minari and h5py raise for damaged data


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
    dataset = _opened(dataset_id)
    metadata, environment = dataset.storage.metadata, dataset.env_spec
    minimum, maximum = (metadata.get(key) for key in ("ref_min_score", "ref_max_score"))
    return MinariFacts(
        dataset_id=dataset_id,
        env_id=None if environment is None else environment.id,
        observation_dim=_flat_dim(dataset_id, "observations", dataset.observation_space),
        action_dim=_flat_dim(dataset_id, "actions", dataset.action_space),
        max_episode_steps=None if environment is None else environment.max_episode_steps,
        reference_minimum=None if minimum is None else float(minimum),
        reference_maximum=None if maximum is None else float(maximum),
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
    dataset = _opened(dataset_id)
    for name, dim in (("observations", rules.observation_dim), ("actions", rules.action_dim)):
        found = _flat_dim(dataset_id, name, getattr(dataset, f"{name[:-1]}_space"))
        if found != dim:
            raise DatasetError(
                f"{dataset_id}: {name} have {found} numbers a row, the task has {dim}; is it another task's data set?"
            )
    count = dataset.total_steps
    if count == 0:
        raise DatasetError(f"{dataset_id}: holds no episode")
    rows = _Rows(
        observations=allocate("observations", (count, rules.observation_dim)),
        actions=allocate("actions", (count, rules.action_dim)),
        rewards=allocate("rewards", (count,)),
        terminals=np.zeros(count, dtype=bool),
        timeouts=np.zeros(count, dtype=bool),
    )
    filled = 0
    for episode in _stored_episodes(dataset_id, dataset):
        filled = _append(dataset_id, rows, filled, episode)
    if filled != count:
        raise _damaged(dataset_id, f"its metadata say {count} steps, its episodes hold {filled}")
    return Episodes(rows.observations, rows.actions, rows.rewards, episode_starts(rows.terminals, rows.timeouts, rules))


def download_minari(dataset_id: str) -> None:
    """Fetch the data set from Minari's server (or $MINARI_REMOTE), unless it is there; one process of a host does it.

    Raises:
        DatasetError: minari is missing, the server does not answer or does not have it, or what is there is damaged.
        StorageError: the folder cannot be written, or another process does not finish its download.
    """
    minari = _minari()
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
class _Rows:
    """The arrays of N transitions, to be filled."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminals: np.ndarray
    timeouts: np.ndarray


def _append(dataset_id: str, rows: _Rows, start: int, episode: Any) -> int:
    """Copy the episode to the rows from `start` on; the row after its last."""
    where = f"episode {episode.id}"
    steps, space = len(episode.rewards), len(rows.rewards) - start
    if not 0 < steps <= space:
        raise _damaged(dataset_id, f"{where} has {steps} steps, by its metadata 1 to {space} are left")
    wanted = {
        "observations": (steps + 1, *rows.observations.shape[1:]),
        "actions": (steps, *rows.actions.shape[1:]),
        "rewards": (steps,),
        "terminations": (steps,),
        "truncations": (steps,),
    }
    arrays = {name: np.asarray(getattr(episode, name)) for name in wanted}
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise _damaged(dataset_id, f"{where}: {name} are {_x(arrays[name].shape)}, not {_x(shape)}")
    end = start + steps
    for name in ("observations", "actions", "rewards"):
        target = getattr(rows, name)[start:end]
        with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite, and is reported below
            target[:] = arrays[name][:steps]
        finite = np.isfinite(target.reshape(steps, -1)).all(axis=1)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            raise DatasetError(f"{dataset_id}: {where}: {name} row {row} is not finite; remove the episode")
    rows.terminals[start:end] = arrays["terminations"]
    rows.timeouts[start:end] = arrays["truncations"]
    rows.timeouts[end - 1] = True
    return end


def _stored_episodes(dataset_id: str, dataset: Any) -> Iterator[Any]:
    with _report_damage(dataset_id):
        yield from dataset.iterate_episodes()


def _opened(dataset_id: str) -> Any:
    """The data set as minari opens it; DatasetError where it is missing or cannot be read."""
    minari, root = _minari(), _root()
    if not (root / dataset_id / "data").is_dir():
        raise DatasetError(_not_there(dataset_id, root))
    with _report_damage(dataset_id):
        return minari.load_dataset(dataset_id)


@contextmanager
def _report_damage(dataset_id: str) -> Iterator[None]:
    try:
        yield
    except ImportError as cause:  # of the library that the data set's own format needs
        raise DatasetError(f"{dataset_id}: {cause}") from cause
    except _DAMAGE as cause:
        raise _damaged(dataset_id, f"{type(cause).__name__}: {cause}") from cause


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


def _flat_dim(dataset_id: str, name: str, space: Any) -> int:
    kind = type(space).__name__  # by name: gymnasium belongs to the simulators
    if kind == "Dict":
        raise DatasetError(
            f"{dataset_id}: its {name} are a Dict ({', '.join(space)}), the goal-conditioned layout of Minari's "
            "maze and kitchen sets. They are another protocol than D4RL's files and are not supported; "
            "use D4RL's file of the task"
        )
    if kind != "Box" or len(space.shape) != 1:
        raise DatasetError(f"{dataset_id}: its {name} are {space}; only rows of numbers (a flat Box) are supported")
    return int(space.shape[0])


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
