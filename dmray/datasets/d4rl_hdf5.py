"""Files in D4RL's HDF5 layout: one row a transition, episodes end to end.

observations (N, S)   actions (N, A)   rewards (N,)   terminals (N,)   timeouts (N,), missing in some v0 files

`FileRules` says how the files of one task family differ from those of another; there is one reader for all.

Who writes such a file may call its arrays otherwise (gymnasium says truncations). An array of flags that has a known
other name is taken, with a note. Any other array with a name that is nearly right is an error that names it: to go on
without it, or with a guess, would give other episodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from dmray.datasets.checked_rows import (
    Allocate,
    FileRules,
    Rows,
    as_flags,
    check_flags,
    check_numbers,
    episodes_of,
    in_memory,
)
from dmray.datasets.episodes import WARNING, Episodes
from dmray.datasets.hdf5_arrays import Hdf5Array, Hdf5Source, open_hdf5
from dmray.errors import DatasetError
from dmray.files import write_atomic
from dmray.registry import nearest

_NUMBERS = ("observations", "actions", "rewards")
_FLAGS = ("terminals", "timeouts")
_ARRAYS = (*_NUMBERS, "terminals")
_BLOCK_ROWS = 65_536  # what is looked at in one piece, so that a check needs no second array of the file's size
_SAME = 1e-3  # how far (relative) an observation may be from `next_observations` of the row before
_LISTED = 12

# Lower case, letters and digits only: `TimeLimit.truncated` is timelimittruncated.
_OTHER_NAMES = {
    "observations": ("observation", "obs", "observs", "states", "state"),
    "actions": ("action", "acts", "act"),
    "rewards": ("reward", "rews", "rew"),
    "terminals": ("terminal", "termination", "terminations", "terminated", "terminateds"),
    "timeouts": (
        "timeout", "timedout", "truncation", "truncations", "truncated", "truncateds", "timelimit", "timelimits",
        "timelimittruncated",
    ),
}  # fmt: skip
_MARKS_EPISODES = re.compile(
    r"done|last|first|begin|start|stop|end|reset|init|episode|traj|path|trunc|time_?(out|limit|step)|step|length|mask",
    re.IGNORECASE,
)


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


def read_d4rl_hdf5(path: Path, rules: FileRules, allocate: Allocate = in_memory) -> Episodes:
    """The episodes of the file. Nothing but the arrays that `allocate` gives is as large as the file.

    Raises:
        DatasetError: the file is missing, no HDF5, truncated, of another task, holds no episode, or an array is not
            what it must be (name, place, type, shape, size, values); the message names file, array and row.
    """
    with open_hdf5(path) as source:
        layout = _Layout.of(source)
        _check_shapes(path, layout.arrays, rules)
        observations = layout.arrays["observations"]
        observation_dim, notes = _observation_dim(observations, rules)
        count = len(observations)
        shapes = {"observations": (count, observation_dim), "actions": (count, rules.action_dim), "rewards": (count,)}
        flags = {name: _flags(layout.arrays[name]) for name in _FLAGS if name in layout.arrays}
        notes = (*layout.notes, *_check_other_flags(layout, flags), *notes)
        if "timeouts" not in flags:
            _check_no_other_ends(source, count)
        arrays = {name: layout.arrays[name].read_into(allocate(name, shape)) for name, shape in shapes.items()}
        rows = Rows(**arrays, terminals=flags["terminals"], timeouts=flags.get("timeouts"))
        episodes = episodes_of(str(path), rows, rules, notes)
        if rows.timeouts is None:
            episodes = _with_breaks(source, episodes)
    return episodes


class FileSizes(NamedTuple):
    """How many numbers a row has, and the task that a file of dmray says it was recorded in."""

    observation_dim: int
    action_dim: int
    recorded_in: str | None


def read_sizes(path: Path) -> FileSizes:
    """The sizes of a file whose task is not known; no row is read.

    Raises:
        DatasetError: as `check_is_d4rl`, or observations or actions are not rows of numbers.
    """
    with open_hdf5(path) as source:
        arrays = _Layout.of(source).arrays
        for name in ("observations", "actions"):
            if len(arrays[name].shape) != 2:
                raise DatasetError(f"{path}: {name} are {_shape(arrays[name])}, but must be rows of numbers")
        return FileSizes(arrays["observations"].shape[1], arrays["actions"].shape[1], source.attribute("task"))


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
    with open_hdf5(path) as source:
        _Layout.of(source)


@dataclass(frozen=True)
class _Layout:
    """Which array of the file is what."""

    arrays: dict[str, Hdf5Array]  # by D4RL's names; timeouts only if there are some
    others: dict[str, list[Hdf5Array]]  # arrays of flags with another name of one that is there
    notes: tuple[str, ...]

    @classmethod
    def of(cls, source: Hdf5Source) -> _Layout:
        top = source.names()
        nested = [f"{group}/{name}" for group in ("infos", "info") if group in top for name in source.names(group)]
        arrays: dict[str, Hdf5Array] = {}
        others: dict[str, list[Hdf5Array]] = {}
        notes: list[str] = []
        for name, known in _OTHER_NAMES.items():
            listed = [*top, *(nested if name in _FLAGS else [])]
            near = [found for found in listed if found != name and _plain(found) in (*known, name)]
            if (array := source.find(name)) is not None:
                arrays[name] = array
                others[name] = [other for found in near if (other := source.find(found)) is not None]
                if name in _NUMBERS:
                    notes += [f"{name}: '{found}', which the file has as well, is not read" for found in near]
            elif name in _FLAGS and near:
                arrays[name] = _only(source, name, near)
                notes.append(f"{name}: read from '{near[0]}'")
            elif name in _ARRAYS:
                raise DatasetError(f"{source.path}: {_missing(name, near, top)}")
        return cls(arrays, others, tuple(notes))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.rsplit("/", 1)[-1].lower())


def _only(source: Hdf5Source, name: str, near: list[str]) -> Hdf5Array:
    if len(near) > 1:
        raise DatasetError(
            f"{source.path}: no array '{name}', and both '{near[0]}' and '{near[1]}' may be meant; name one '{name}'"
        )
    array = source.find(near[0])
    assert array is not None, "a name that was listed"
    return array


def _missing(name: str, near: list[str], top: list[str]) -> str:
    best = near[0] if near else nearest(name, [other for other in top if other not in _OTHER_NAMES])
    there = ", ".join(top[:_LISTED]) + (f" and {len(top) - _LISTED} more" if len(top) > _LISTED else "")
    ends = next((other for other in top if _plain(other) in ("done", "dones")), None)
    if name == "terminals" and not near and ends:
        return (
            f"no array 'terminals', only '{ends}', which does not tell falls from time limits; write 'terminals' (true "
            "where the task ended the episode) and 'timeouts' (true where the time limit did)"
        )
    if best is not None:
        return f"no array '{name}', is its '{best}' meant? Then rename it; D4RL's layout has {', '.join(_ARRAYS)}"
    return f"no array '{name}' (it has: {there or 'none'}); D4RL's layout has {', '.join(_ARRAYS)}"


def _check_shapes(path: Path, arrays: Mapping[str, Hdf5Array], rules: FileRules) -> None:
    """Check types, shapes, lengths, and that the rows of what is learned from were written."""
    dims = {rules.observation_dim, rules.observation_dim + rules.appendix_dim}
    for name, allowed in (("observations", dims), ("actions", {rules.action_dim})):
        array = arrays[name]
        if len(array.shape) != 2 or array.shape[1] not in allowed:
            wanted = " or ".join(map(str, sorted(allowed)))
            raise DatasetError(
                f"{path}: {name} are {_shape(array)}, the task has {wanted} numbers a row; is it the file of another "
                "task?"
            )
    count = len(arrays["observations"])
    if count == 0:
        raise DatasetError(f"{path}: observations have no rows; write the file again, or fetch it again")
    for name, array in arrays.items():
        if (name in ("rewards", *_FLAGS) and array.shape[1:] not in ((), (1,))) or not array.shape:
            raise DatasetError(
                f"{path}: {name} are {_shape(array)}, but there must be one for each of the {count:,} rows"
            )
        if len(array) != count:
            raise DatasetError(f"{path}: {name} has {len(array)} rows, observations {count}; the file is damaged")
        if name in _NUMBERS:
            check_numbers(array.where, array.dtype)
            if h5py.check_enum_dtype(array.dtype) is not None:
                raise DatasetError(f"{array.where} must be numbers, but they are an enumeration; write them as float32")
            array.check_whole()


def _shape(array: Hdf5Array) -> str:
    return "x".join(map(str, array.shape)) or "a single value"


def _observation_dim(stored: Hdf5Array, rules: FileRules) -> tuple[int, tuple[str, ...]]:
    """How many numbers of each row are kept, and the note that says so."""
    small, large = rules.observation_dim, rules.observation_dim + rules.appendix_dim
    if stored.shape[1] == small:
        return small, ()
    appendix = slice(small, None)
    first = stored.read(slice(0, 1), appendix)
    starts = range(0, len(stored), _BLOCK_ROWS)
    if all((stored.read(slice(start, start + _BLOCK_ROWS), appendix) == first).all() for start in starts):
        return small, (f"observations: the last {rules.appendix_dim} of {large} numbers never change, and are dropped",)
    return large, (f"observations: the last {rules.appendix_dim} of {large} numbers are zeros when the policy acts",)


def _flags(array: Hdf5Array) -> np.ndarray:
    check_flags(array.where, array.dtype)  # before it is read: text of any length may be of any size
    return as_flags(array.where, array.read_column())


def _check_other_flags(layout: _Layout, flags: Mapping[str, np.ndarray]) -> list[str]:
    """Compare arrays such as `truncations` with the `timeouts` that the file has as well. Returns notes.

    Raises:
        DatasetError: they differ, so it is not known which of them ends the episodes.
    """
    notes = []
    for name, used in flags.items():
        for other in layout.others.get(name, []):
            if other.shape not in ((len(used),), (len(used), 1)):
                notes.append(f"{name}: {_name(other)}, which the file has as well, is not read")
            elif (differ := int((_flags(other) != used).sum())) > 0:
                raise DatasetError(
                    f"{layout.arrays[name].where} and {_name(other)} differ in {differ:,} rows; remove the one that is "
                    "wrong"
                )
    return notes


def _name(array: Hdf5Array) -> str:
    return f"'{array.where.rsplit(': ', 1)[-1]}'"


def _check_no_other_ends(source: Hdf5Source, count: int) -> None:
    """Check that a file without timeouts has no array that may say where episodes end.

    Raises:
        DatasetError: it has one. To cut at the horizon would give other episodes.
    """
    for group in ("/", "infos", "info"):
        for found in source.names(group):
            name = found if group == "/" else f"{group}/{found}"
            if name in _ARRAYS or not _MARKS_EPISODES.search(found) or found.startswith("next_"):
                continue
            array = source.find(name) if name not in ("infos", "info") else None
            if array is not None and len(array.shape) == 1:
                raise DatasetError(
                    f"{source.path}: no array 'timeouts', but '{name}' ({_shape(array)}) may say where episodes end; "
                    "write 'timeouts' (true at the last row of each episode that the time limit ended), or remove it "
                    "to have episodes cut at the horizon"
                )


def _with_breaks(source: Hdf5Source, episodes: Episodes) -> Episodes:
    """`episodes` of a file without timeouts, with a warning if `next_observations` show that there are more ends."""
    following = source.find("next_observations")
    count, width = episodes.observations.shape
    if following is None or len(following.shape) != 2 or len(following) < count or following.shape[1] < width:
        return episodes
    if following.dtype.kind not in "fiu":
        return episodes
    last = np.zeros(count, dtype=bool)
    last[episodes.starts[1:] - 1] = True
    breaks = 0
    for start in range(0, count - 1, _BLOCK_ROWS):
        end = min(start + _BLOCK_ROWS, count - 1)
        after = episodes.observations[start + 1 : end + 1]
        far = np.abs(following.read(slice(start, end), slice(0, width)) - after) > _SAME * (1 + np.abs(after))
        breaks += int((far.any(axis=1) & ~last[start:end]).sum())
    if not breaks:
        return episodes
    note = (
        f"{WARNING}rows: at {breaks:,} places inside episodes the next row is not what 'next_observations' says: "
        "episodes end there that no array marks"
    )
    return replace(episodes, notes=(*episodes.notes, note))
