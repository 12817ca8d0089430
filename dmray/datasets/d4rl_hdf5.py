"""Files in D4RL's HDF5 layout: one row a transition, episodes end to end.

observations (N, S)   actions (N, A)   rewards (N,)   terminals (N,)   timeouts (N,), missing in some v0 files

`FileRules` says how the files of one task family differ from those of another; there is one reader for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dmray.datasets.episodes import Episodes
from dmray.datasets.subtask_rewards import Subtask, first_reward_only, has_per_step_subtask_rewards, reward_arrivals
from dmray.errors import DatasetError
from dmray.files import write_atomic

_ARRAYS = ("observations", "actions", "rewards", "terminals")
_BLOCK_ROWS = 65_536  # what is looked at in one piece, so that a check needs no second array of the file's size

Allocate = Callable[[str, tuple[int, ...]], np.ndarray]  # a float32 array of that name and shape, to be filled


@dataclass(frozen=True)
class FileRules:
    """What a file of a task must hold and how its rows become episodes.

    antmaze does not split on terminals: its rewards are relabelled, and an episode may have many terminals.

    `appendix_dim`: the observation may have so many numbers more than `observation_dim` (ant's contact forces). They
    are dropped if no row differs in them, else kept.

    `pay_once`: subtasks that evaluation pays once each. Where a file pays for every step at which they are done
    (kitchen), its rewards are rewritten to what evaluation would have paid.

    `ends_at_first_reward`: evaluation ends an episode at its first reward (antmaze), so the later rewards of an episode
    become zero.
    """

    observation_dim: int
    action_dim: int
    horizon: int
    split_on_terminals: bool = True
    keep_unfinished: bool = False  # rows after the last end: D4RL's own readers drop them
    appendix_dim: int = 0
    pay_once: tuple[Subtask, ...] = ()
    ends_at_first_reward: bool = False


@dataclass(frozen=True)
class RecordedTransitions:
    """The arrays of a file, N transitions, piece after piece; the last step of a piece ends it."""

    observations: np.ndarray  # (N, S) float32, before the step
    actions: np.ndarray  # (N, A) float32, as applied
    rewards: np.ndarray  # (N,) float32, what the engine pays
    terminals: np.ndarray  # (N,) bool
    timeouts: np.ndarray  # (N,) bool
    goals: np.ndarray | None = None  # (N, 2) float32, a controller's targets: `infos/goal` in a file

    @classmethod
    def joined(cls, parts: Sequence[RecordedTransitions]) -> RecordedTransitions:
        """All of `parts`, end to end; with goals if all have goals."""
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        given = {name: arrays for name, arrays in columns.items() if all(array is not None for array in arrays)}
        return cls(**{name: np.concatenate(arrays) for name, arrays in given.items()})

    def as_arrays(self) -> dict[str, np.ndarray]:
        """By their names in a file."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "goals"}
        return named if self.goals is None else {**named, "infos/goal": self.goals}


def in_memory(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The usual `Allocate`."""
    del name
    return np.empty(shape, dtype=np.float32)


def read_d4rl_hdf5(path: Path, rules: FileRules, allocate: Allocate = in_memory) -> Episodes:
    """The episodes of the file. Nothing but the arrays that `allocate` gives is as large as the file.

    Raises:
        DatasetError: the file is missing, no HDF5, truncated, of another task, or holds no episode or a value that is
            not finite; the message names file, array and row.
    """
    with _opened(path) as file:
        _check_shapes(path, file, rules)
        observation_dim, notes = _observation_dim(file["observations"], rules)
        count = len(file["observations"])
        shapes = {"observations": (count, observation_dim), "actions": (count, rules.action_dim), "rewards": (count,)}
        arrays = {name: _read(file[name], allocate(name, shape)) for name, shape in shapes.items()}
        terminals = file["terminals"][()].astype(bool, copy=False).reshape(-1)
        timeouts = file["timeouts"][()].astype(bool, copy=False).reshape(-1) if "timeouts" in file else None
    for name, array in arrays.items():
        _check_finite(path, name, array)
    starts = episode_starts(terminals, timeouts, rules)
    if len(starts) < 2:
        raise DatasetError(f"{path}: no episode ends in its {count} rows (terminals, timeouts)")
    end = starts[-1]
    observations, actions, rewards = (arrays[name][:end] for name in shapes)
    if rules.pay_once and has_per_step_subtask_rewards(rewards, starts, rules.pay_once):
        rewards[:] = reward_arrivals(observations, rewards, starts, rules.pay_once)
        notes = (*notes, "rewards: paid once for each subtask, as evaluation pays; the file pays at every step")
    if rules.ends_at_first_reward:
        first = first_reward_only(rewards, starts)
        if (first != rewards).any():
            rewards[:] = first
            notes = (*notes, "rewards: an episode's first one alone, at which evaluation ends; the file pays on")
    return Episodes(observations, actions, rewards, starts, notes)


def episode_starts(terminals: np.ndarray, timeouts: np.ndarray | None, rules: FileRules) -> np.ndarray:
    """Where episodes start, and where the last one ends, (E + 1,) int64; every reader splits by this function.

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
    """Write `arrays` (names may be paths, such as `infos/goal`); the file appears only when it is complete.

    HDF5 makes the file in memory, since it crashes where a disk is full.

    Raises:
        OSError: the file cannot be written.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        file.attrs.update(attributes)
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1)
        file.flush()
        content = file.id.get_file_image()
    write_atomic(path, content)


def check_is_d4rl(path: Path) -> None:
    """Check a downloaded file whose task is not known: it must be HDF5 with D4RL's arrays.

    Raises:
        DatasetError: it is no HDF5, truncated, or lacks an array.
    """
    with _opened(path) as file:
        _check_names(path, file)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as cause:
        raise DatasetError(f"{path}: not a readable HDF5 file, perhaps truncated ({cause}); fetch it again") from cause


def _read(stored: Any, array: np.ndarray) -> np.ndarray:
    """Fill `array` with the leading columns of `stored`, converted on the way."""
    if stored.ndim > array.ndim:  # (N, 1) for (N,)
        array[:] = stored[:, 0]
    elif stored.shape:
        stored.read_direct(array, tuple(slice(0, size) for size in array.shape))
    return array


def _observation_dim(stored: Any, rules: FileRules) -> tuple[int, tuple[str, ...]]:
    """How many numbers of each row are kept, and the note that says so."""
    small, large = rules.observation_dim, rules.observation_dim + rules.appendix_dim
    if stored.shape[1] == small:
        return small, ()
    first = stored[0, small:]
    blocks = (stored[start : start + _BLOCK_ROWS, small:] for start in range(0, len(stored), _BLOCK_ROWS))
    if all((block == first).all() for block in blocks):
        return small, (f"observations: the last {rules.appendix_dim} of {large} numbers never change, and are dropped",)
    return large, (f"observations: the last {rules.appendix_dim} of {large} numbers are zeros when the policy acts",)


def _check_names(path: Path, file: h5py.File) -> None:
    missing = [name for name in _ARRAYS if name not in file]
    if missing:
        raise DatasetError(f"{path}: no array '{missing[0]}'; D4RL's layout has {', '.join(_ARRAYS)}")


def _check_shapes(path: Path, file: h5py.File, rules: FileRules) -> None:
    _check_names(path, file)
    count = len(file["observations"])
    for name in (*_ARRAYS, *(["timeouts"] if "timeouts" in file else [])):
        if len(file[name]) != count:
            raise DatasetError(f"{path}: {name} has {len(file[name])} rows, observations {count}; the file is damaged")
    dims = {rules.observation_dim, rules.observation_dim + rules.appendix_dim}
    for name, allowed in (("observations", dims), ("actions", {rules.action_dim})):
        if file[name].ndim != 2 or file[name].shape[1] not in allowed:
            shape = "x".join(map(str, file[name].shape))
            wanted = " or ".join(map(str, sorted(allowed)))
            raise DatasetError(
                f"{path}: {name} are {shape}, the task has {wanted} numbers a row; is it the file of another task?"
            )


def _check_finite(path: Path, name: str, array: np.ndarray) -> None:
    for start in range(0, len(array), _BLOCK_ROWS):
        block = array[start : start + _BLOCK_ROWS]
        finite = np.isfinite(block.reshape(len(block), -1)).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise DatasetError(f"{path}: {name} row {row} is not finite; remove its episode, or fetch the file again")
