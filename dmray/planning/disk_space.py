"""Free space on the storage: enough for the whole plan before the start, and a floor at each checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from dmray.errors import StorageError
from dmray.planning.cost import total_cost
from dmray.specs import SweepSpec, TrialSpec
from dmray.storage import is_url

_GIB = 2**30


def free_bytes(path: Path) -> int:
    """What is free where `path` is, or would be."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(there).free


def require_space(path: Path, min_free_gib: float) -> None:
    """Refuse to write when less than the floor is free (0: never).

    Raises:
        StorageError: so it is.
    """
    free = free_bytes(path) if min_free_gib else 0
    if free < min_free_gib * _GIB:
        raise StorageError(
            f"{path}: {free / _GIB:.2f} GiB free, less than faults.min_free_gib ({min_free_gib:g}); the last "
            "checkpoint is whole. Free some space and continue with --resume"
        )


def require_space_for(trials: Iterable[TrialSpec], sweep: SweepSpec, path: Path) -> None:
    """Refuse a start whose trials would fill the disk. (An object store does not tell what it has free.)

    Raises:
        StorageError: the plan's bytes and the floor are more than is free.
    """
    if not sweep.faults.min_free_gib or is_url(sweep.storage):
        return
    planned = total_cost(trials, sweep.tracking.log_every_steps).disk_bytes
    needed, free = planned + sweep.faults.min_free_gib * _GIB, free_bytes(path)
    if needed > free:
        raise StorageError(
            f"{path}: {free / _GIB:.1f} GiB free; the trials to run take about {planned / _GIB:.1f} GiB and "
            f"faults.min_free_gib {sweep.faults.min_free_gib:g} stay free. Choose another --storage, run a part of the "
            "trials (--only, --shard), or lower faults.min_free_gib (0: no check)"
        )
