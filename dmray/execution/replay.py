"""A sweep's folder into MLflow, apart from any run of the sweep."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from dmray.errors import StorageError
from dmray.execution.lease import lease
from dmray.execution.plan import Plan
from dmray.specs import NO_MLFLOW, Spec, SweepSpec, TrialSpec
from dmray.tracking import Lag, MlflowMirror, SweepFolder
from dmray.tracking.champions import Champion


class _Manifest(Spec):
    sweep: SweepSpec
    trials: tuple[TrialSpec, ...]


@dataclass(frozen=True)
class Replayed:
    """What MLflow lacks now, and the policies that were put into its model registry."""

    lag: Lag
    champions: tuple[Champion, ...] = ()


def replay(folder: SweepFolder, uri: str | None, register: bool = False) -> Replayed:
    """Bring what the ledgers hold into the MLflow at `uri`; with `register` then the best policies into its registry.

    `uri` None: where the sweep was to be tracked, which for a sweep without MLflow is its storage folder's SQLite file.
    What is incomplete is not registered.

    Raises:
        StorageError: there is no sweep in the folder, or its driver runs: then that one fills MLflow in.
        TrackingError: nothing answers at `uri`, or its registry refuses.
    """
    plan = read_plan(folder)
    meant = plan.sweep.tracking.mlflow_uri
    with lease(folder):
        mirror = MlflowMirror.open(uri or (None if meant == NO_MLFLOW else meant), folder, plan.sweep, plan.trials)
        lag = mirror.close(folder.report)
        return Replayed(lag, tuple(mirror.register()) if register and lag.problem is None else ())


def read_plan(folder: SweepFolder) -> Plan:
    """The plan of the sweep's last start.

    Raises:
        StorageError: there is no sweep in the folder, or it is of another version of dmray.
    """
    try:
        manifest = _Manifest.model_validate_json(folder.manifest.read_bytes())
    except OSError as cause:
        raise StorageError(
            f"{folder.path}: no sweep here (no {folder.manifest.name}); name the folder <storage>/<sweep>, for example "
            "runs/quickstart"
        ) from cause
    except ValidationError as invalid:
        first = invalid.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StorageError(f"{folder.manifest}: not of this version of dmray: {place}: {first['msg']}") from None
    return Plan(manifest.sweep, manifest.trials)
