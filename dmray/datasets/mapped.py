"""Episodes on disk as plain arrays that processes map into memory: the trials of a node share one copy.

    <folder>/observations.npy  actions.npy  rewards.npy  starts.npy  about.json

A mapped array is backed by the file's pages in the operating system's cache: opening it costs nothing, and a second
process that opens it costs no memory. Pages are copied for a process only where it writes, and nothing here writes.

To touch a page that has no place on the disk kills the process (SIGBUS). So the place of each array is reserved before
it is filled, and the size of each file is checked before it is mapped.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dmray.datasets.checked_rows import Allocate
from dmray.datasets.episodes import Episodes
from dmray.errors import StorageError
from dmray.files import as_storage_error, partial, remove_parts_of
from dmray.space import require_disk, require_memory, reserve

_ARRAYS = ("observations", "actions", "rewards")
_FILES = (*(f"{name}.npy" for name in _ARRAYS), "starts.npy")
_ABOUT = "about.json"
_CURE = "free some space, or set DMRAY_CACHE to a folder on a larger disk"

Read = Callable[[Allocate], Episodes]  # reads the episodes into the arrays that it asks for


def find_mapped(folder: Path) -> Episodes | None:
    """The episodes in `folder`; None if it is missing, or not as `write_mapped` left it."""
    try:
        about = json.loads((folder / _ABOUT).read_bytes())
        if {name: (folder / name).stat().st_size for name in _FILES} != about["sizes"]:
            return None
        starts = np.load(folder / "starts.npy")
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c")[: starts[-1]] for name in _ARRAYS}
        episodes = Episodes(**arrays, starts=starts, notes=tuple(about["notes"]))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AssertionError):
        return None
    return episodes if episodes.fingerprint == about.get("fingerprint") else None


def write_mapped(folder: Path, read: Read, source: str) -> Episodes:
    """The episodes that `read` gives, written to `folder` and mapped from there. The caller holds the folder's lock.

    `folder` appears only when it is complete, even if the writer is killed. What was there is replaced. `source` names
    what is read, for messages.

    Raises:
        StorageError: the disk has no room for the arrays, or `folder` cannot be written.
    """
    with as_storage_error(folder, "set DMRAY_CACHE to a folder that can be written"):
        remove_parts_of(folder)
        if folder.exists():
            shutil.rmtree(folder)
        with partial(folder) as part:
            part.mkdir()
            _write(part, read, source)
    episodes = find_mapped(folder)
    if episodes is None:
        raise StorageError(f"{folder}: the arrays of {source} are not as they were written; is the disk damaged?")
    return episodes


def in_available_memory(source: str) -> Allocate:
    """An `Allocate` of plain arrays that refuses what the machine's memory does not hold.

    Raises (the function):
        StorageError: so much memory is not available.
    """

    def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
        what, cure = f"{name} of {source}, {_x(shape)} numbers,", "is the file damaged? Else use a larger machine"
        require_memory(4 * math.prod(shape), what, cure)
        return np.empty(shape, dtype=np.float32)

    return allocate


def _write(folder: Path, read: Read, source: str) -> None:
    maps: dict[str, np.memmap[Any, Any]] = {}

    def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
        file, what = folder / f"{name}.npy", f"{name} of {source}, {_x(shape)} numbers,"
        require_disk(folder.parent, 4 * math.prod(shape), what, _CURE)
        with as_storage_error(folder.parent, _CURE):  # here, since readers take an OSError for one of their own file
            maps[name] = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
            reserve(file, what, _CURE)
        return maps[name]

    episodes = read(allocate)
    for name in _ARRAYS:
        if name in maps:
            maps[name].flush()
        else:  # the reader has arrays of its own
            array = getattr(episodes, name)
            require_disk(folder.parent, array.nbytes, f"{name} of {source}", _CURE)
            np.save(folder / f"{name}.npy", array)
    np.save(folder / "starts.npy", episodes.starts)
    about = {
        "sizes": {name: (folder / name).stat().st_size for name in _FILES},
        "fingerprint": episodes.fingerprint,
        "notes": episodes.notes,
    }
    (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(f"{size:,}" for size in shape)
