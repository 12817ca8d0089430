"""Episodes on disk as plain arrays that processes map into memory: the trials of a node share one copy.

    <folder>/observations.npy  actions.npy  rewards.npy  starts.npy  notes.json

A mapped array is backed by the file's pages in the operating system's cache: opening it costs nothing, and a second
process that opens it costs no memory. Pages are copied for a process only where it writes, and nothing here writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dmray.datasets.d4rl_hdf5 import Allocate
from dmray.datasets.episodes import Episodes
from dmray.files import partial

_ARRAYS = ("observations", "actions", "rewards")


def mapped(folder: Path, read: Callable[[Allocate], Episodes]) -> Episodes:
    """The episodes in `folder`; if they are not there yet, those that `read` puts into the arrays it asks for.

    `folder` appears only when it is complete, even if the writer is killed. The caller ensures that one process writes.
    """
    if not folder.is_dir():
        with partial(folder) as part:
            part.mkdir()
            _write(part, read)
    starts = np.load(folder / "starts.npy")
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c")[: starts[-1]] for name in _ARRAYS}
    return Episodes(
        **arrays, starts=starts, notes=tuple(json.loads((folder / "notes.json").read_text(encoding="utf-8")))
    )


def _write(folder: Path, read: Callable[[Allocate], Episodes]) -> None:
    maps: dict[str, np.memmap[Any, Any]] = {}

    def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
        maps[name] = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
        return maps[name]

    episodes = read(allocate)
    for name in _ARRAYS:
        if name in maps:
            maps[name].flush()
        else:  # the reader has arrays of its own
            np.save(folder / f"{name}.npy", getattr(episodes, name))
    np.save(folder / "starts.npy", episodes.starts)
    (folder / "notes.json").write_text(json.dumps(episodes.notes), encoding="utf-8")
