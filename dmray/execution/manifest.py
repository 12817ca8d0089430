"""The manifest of a sweep's folder: the resolved sweep and its trials, as the driver noted them at its last start."""

from __future__ import annotations

from pydantic import ValidationError

from dmray.errors import StorageError
from dmray.execution.plan import Plan
from dmray.specs import Spec, SweepSpec, TrialSpec
from dmray.tracking.folders import SweepFolder, write_json


class _Manifest(Spec):
    sweep: SweepSpec
    trials: tuple[TrialSpec, ...]


def write_manifest(plan: Plan, folder: SweepFolder) -> None:
    """Note the resolved sweep and its trials: all that a report needs beside the ledgers."""
    write_json(folder.manifest, _Manifest(sweep=plan.sweep, trials=plan.trials).model_dump(mode="json"))


def read_manifest(folder: SweepFolder) -> Plan:
    """The plan of the sweep's last start.

    Raises:
        StorageError: there is no sweep in the folder, or it is of another version of dmray.
    """
    path = folder.manifest
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes())
    except OSError as cause:
        raise StorageError(
            f"{path.parent}: no sweep here (no {path.name}); name the folder <storage>/<sweep>, for example "
            "runs/quickstart"
        ) from cause
    except ValidationError as invalid:
        first = invalid.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StorageError(f"{path}: not the manifest of a sweep of this version: {place}: {first['msg']}") from None
    return Plan(manifest.sweep, manifest.trials)
