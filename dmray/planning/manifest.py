"""The manifest of a sweep's folder: the sweep and its trials, as the driver wrote them at its last start."""

from __future__ import annotations

from pydantic import ValidationError

from dmray.errors import StorageError
from dmray.files import write_json
from dmray.planning.plan import Plan
from dmray.records.folders import SweepFolder
from dmray.specs import IDENTITY_VERSION, Spec, SweepSpec, TrialSpec

UNRECORDED_IDENTITY_VERSION = 2  # of manifests without the field


class _Manifest(Spec):
    sweep: SweepSpec
    trials: tuple[TrialSpec, ...]
    identity_version: int = UNRECORDED_IDENTITY_VERSION


def write_manifest(plan: Plan, folder: SweepFolder) -> None:
    """Write the sweep and its trials to the folder. Reports need this file and the ledgers."""
    manifest = _Manifest(sweep=plan.sweep, trials=plan.trials, identity_version=IDENTITY_VERSION)
    write_json(folder.manifest, manifest.model_dump(mode="json"))


def read_manifest(folder: SweepFolder) -> Plan:
    """Read the plan of the sweep's last start.

    Raises:
        StorageError: there is no sweep in the folder, or another version of dmray with other trial ids wrote it.
    """
    path = folder.manifest
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes())
    except OSError as cause:
        raise StorageError(
            f"{path.parent}: no sweep here (no {path.name}); give the folder <storage>/<sweep>, for example "
            "runs/quickstart"
        ) from cause
    except ValidationError as invalid:
        first = invalid.errors()[0]
        place = ".".join(map(str, first["loc"]))
        problem = f"{place}: {first['msg']}" if place else first["msg"]
        raise StorageError(f"{path}: not the manifest of a sweep of this version: {problem}") from None
    if manifest.identity_version != IDENTITY_VERSION:  # all trial ids differ, so no trial would be found
        raise StorageError(
            f"{path}: written by a version of dmray with other trial ids (identity_version "
            f"{manifest.identity_version}, here {IDENTITY_VERSION}); read it with the git commit in its ledgers, or "
            "run the sweep again"
        )
    return Plan(manifest.sweep, manifest.trials)
