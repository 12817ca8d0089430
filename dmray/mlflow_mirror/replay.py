"""Copy a sweep's ledgers into MLflow while no driver runs the sweep."""

from __future__ import annotations

from dataclasses import dataclass

from dmray.coordination.sweep_lock import folder_lock, store_lock
from dmray.mlflow_mirror.mirror import Lag, MlflowMirror
from dmray.mlflow_mirror.model_registry import BestPolicy
from dmray.planning.manifest import read_manifest
from dmray.records import SweepFolder
from dmray.specs import NO_MLFLOW
from dmray.storage import SweepCopy, existing_sweep_store


@dataclass(frozen=True)
class ReplayResult:
    """What MLflow still lacks, and the policies that were put into its model registry."""

    lag: Lag
    registered: tuple[BestPolicy, ...] = ()


def replay(folder: SweepFolder, uri: str | None, register: bool = False) -> ReplayResult:
    """Bring what the ledgers hold into the MLflow at `uri`; with `register` then the best policies into its registry.

    `uri` None: where the sweep was to be tracked, which for a sweep without MLflow is its storage folder's SQLite file.
    What is incomplete is not registered.

    Raises:
        StorageError: there is no sweep in the folder, or its driver runs: then that one fills MLflow in.
        TrackingError: nothing answers at `uri`, or its registry refuses.
    """
    plan = read_manifest(folder)
    meant = plan.sweep.tracking.mlflow_uri
    with folder_lock(folder):
        mirror = MlflowMirror.open(uri or (None if meant == NO_MLFLOW else meant), folder, plan.sweep, plan.trials)
        lag = mirror.close(folder.report)
        return ReplayResult(lag, tuple(mirror.register()) if register and lag.problem is None else ())


def replay_from_store(storage: str, name: str, uri: str | None, register: bool = False) -> ReplayResult:
    """`replay` of a sweep in an object store, which no driver may take up meanwhile.

    Raises:
        StorageError: as `replay`, or the store holds no such sweep.
        StoreUnavailableError: the store does not answer.
        TrackingError: as `replay`.
    """
    with store_lock(existing_sweep_store(storage, name)):
        copy = SweepCopy.downloaded(storage, name, with_weights=True)
        copy.fetch_report()
        replayed = replay(copy.folder, uri, register)
        copy.push()  # the name by which another machine finds these runs again, if they are the first
        return replayed
