"""The manifest of a sweep's folder: the resolved sweep and its trials, as the driver noted them at its last start."""

from __future__ import annotations

from pydantic import ValidationError

from dmray.errors import StorageError
from dmray.files import write_json
from dmray.planning.plan import Plan
from dmray.records.folders import SweepFolder
from dmray.specs import IDENTITY_VERSION, Spec, SweepSpec, TrialSpec

IDENTITY_BEFORE_IT_WAS_NOTED = 2


class _Manifest(Spec):
    sweep: SweepSpec
    trials: tuple[TrialSpec, ...]
    identity_version: int = IDENTITY_BEFORE_IT_WAS_NOTED


def write_manifest(plan: Plan, folder: SweepFolder) -> None:
    """Note the resolved sweep and its trials: all that a report needs beside the ledgers."""
    manifest = _Manifest(sweep=plan.sweep, trials=plan.trials, identity_version=IDENTITY_VERSION)
    write_json(folder.manifest, manifest.model_dump(mode="json"))


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
        problem = f"{place}: {first['msg']}" if place else first["msg"]
        raise StorageError(f"{path}: not the manifest of a sweep of this version: {problem}") from None
    if manifest.identity_version != IDENTITY_VERSION:  # else every trial would be missing under its new name
        raise StorageError(
            f"{path}: of another version of dmray, which named trials otherwise (identity_version "
            f"{manifest.identity_version}, here {IDENTITY_VERSION}); read it with the commit that its ledgers name, or "
            "run the sweep again"
        )
    return Plan(manifest.sweep, manifest.trials)
