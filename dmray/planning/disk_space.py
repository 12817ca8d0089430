"""Checks of free disk space: before a sweep starts, and before each checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dmray.errors import StorageError
from dmray.planning.cost import total_cost
from dmray.space import free_bytes
from dmray.specs import SweepSpec, TrialSpec
from dmray.storage import is_url

_GIB = 2**30


def require_space(path: Path, min_free_gib: float) -> None:
    """Check that at least `min_free_gib` are free at `path` (0: no check).

    Raises:
        StorageError: less is free.
    """
    free = free_bytes(path) if min_free_gib else 0
    if free < min_free_gib * _GIB:
        raise StorageError(
            f"{path}: {free / _GIB:z.2f} GiB free, less than faults.min_free_gib ({min_free_gib:g}); the previous "
            "checkpoint is kept. Free some space and continue with --resume"
        )


def require_space_for(trials: Iterable[TrialSpec], sweep: SweepSpec, path: Path) -> None:
    """Check that the disk has room for `trials`. Object stores are not checked, since their free space is unknown.

    Raises:
        StorageError: the bytes that the trials write and `faults.min_free_gib` are more than is free.
    """
    if not sweep.faults.min_free_gib or is_url(sweep.storage):
        return
    planned = total_cost(trials, sweep.tracking.log_every_steps, sweep.faults.keep_every_steps).disk_bytes
    needed, free = planned + sweep.faults.min_free_gib * _GIB, free_bytes(path)
    if needed > free:
        raise StorageError(
            f"{path}: {free / _GIB:z.1f} GiB free, but the trials to run need about {planned / _GIB:z.1f} GiB, and "
            f"faults.min_free_gib requires that {sweep.faults.min_free_gib:g} GiB stay free. Choose another --storage, "
            "run a part of the trials (--only, --shard), keep fewer checkpoints (faults.keep_checkpoints), or lower "
            "faults.min_free_gib (0: no check)"
        )
