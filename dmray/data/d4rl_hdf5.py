"""Files in D4RL's HDF5 layout: one row a transition, episodes end to end.

observations (N, S)   actions (N, A)   rewards (N,)   terminals (N,)   timeouts (N,), missing in some v0 files
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import h5py
import numpy as np

from dmray.data.episodes import Episodes
from dmray.errors import DatasetError

_ARRAYS = ("observations", "actions", "rewards", "terminals")


@dataclass(frozen=True)
class FileRules:
    """What a file of a task must hold and how its rows become episodes.

    antmaze does not split on terminals: its rewards are relabelled, and an episode may reach the goal many times.
    """

    observation_dim: int
    action_dim: int
    horizon: int
    split_on_terminals: bool = True
    keep_unfinished: bool = False  # rows after the last end: D4RL's own readers drop them


def read_d4rl_hdf5(path: Path, rules: FileRules) -> Episodes:
    """The episodes of the file.

    Raises:
        DatasetError: the file is missing, no HDF5, truncated, of another task, or holds no episode or a value that is
            not finite; the message names file, array and row.
    """
    with _opened(path) as file:
        missing = [name for name in _ARRAYS if name not in file]
        if missing:
            raise DatasetError(f"{path}: no array '{missing[0]}'; D4RL's layout has {', '.join(_ARRAYS)}")
        observations, actions, rewards = (file[name][()].astype(np.float32, copy=False) for name in _ARRAYS[:3])
        terminals = file["terminals"][()].astype(bool, copy=False).reshape(-1)
        timeouts = file["timeouts"][()].astype(bool, copy=False).reshape(-1) if "timeouts" in file else None
    rewards = rewards.reshape(-1)
    arrays = {"observations": observations, "actions": actions, "rewards": rewards, "terminals": terminals}
    _check(path, arrays if timeouts is None else arrays | {"timeouts": timeouts}, rules)
    starts = episode_starts(terminals, timeouts, rules)
    if len(starts) < 2:
        raise DatasetError(f"{path}: no episode ends in its {len(rewards)} rows (terminals, timeouts)")
    end = starts[-1]
    return Episodes(observations[:end], actions[:end], rewards[:end], starts)


def episode_starts(terminals: np.ndarray, timeouts: np.ndarray | None, rules: FileRules) -> np.ndarray:
    """Where episodes start, and where the last one ends, (E + 1,) int64: the one place that knows how to split.

    An episode ends where `timeouts` says so and, if the rules split on them, where `terminals` does. Without timeouts
    it ends after the horizon at the latest.
    """
    count = len(terminals)
    ends = terminals.copy() if rules.split_on_terminals else np.zeros(count, dtype=bool)
    if timeouts is not None:
        ends |= timeouts
    marks = np.concatenate([[0], np.flatnonzero(ends) + 1])
    if timeouts is None:
        last = np.append(marks[1:], count)
        cuts = [np.arange(first, end + 1, rules.horizon) for first, end in zip(marks, last, strict=True)]
        marks = np.unique(np.concatenate([marks, *cuts]))
    if rules.keep_unfinished and marks[-1] < count:
        marks = np.append(marks, count)
    return marks.astype(np.int64)


def write_d4rl_hdf5(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, str]) -> None:
    """Write `arrays` (names may be paths, such as `infos/goal`); the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        with h5py.File(part, "w") as file:
            file.attrs.update(attributes)
            for name, array in arrays.items():
                file.create_dataset(name, data=array, compression="gzip", compression_opts=1)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as cause:
        raise DatasetError(f"{path}: not a readable HDF5 file, perhaps truncated ({cause}); fetch it again") from cause


def _check(path: Path, arrays: Mapping[str, np.ndarray], rules: FileRules) -> None:
    count = len(arrays["observations"])
    for name, array in arrays.items():
        if len(array) != count:
            raise DatasetError(f"{path}: {name} has {len(array)} rows, observations {count}; the file is damaged")
    for name, dim in (("observations", rules.observation_dim), ("actions", rules.action_dim)):
        if arrays[name].shape[1:] != (dim,):
            shape = "x".join(map(str, arrays[name].shape))
            raise DatasetError(
                f"{path}: {name} are {shape}, the task has {dim} numbers a row; is it another task's file?"
            )
    for name in ("observations", "actions", "rewards"):
        finite = np.isfinite(arrays[name].reshape(count, -1)).all(axis=1)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            raise DatasetError(f"{path}: {name} row {row} is not finite; remove its episode, or fetch the file again")
