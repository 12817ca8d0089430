"""The manifest of a sweep's folder (sweep.json): the sweep and its trials, written by the driver at each start."""

from __future__ import annotations

import json

from pydantic import ValidationError

from dmray.errors import StorageError
from dmray.files import write_json
from dmray.planning.plan import Plan
from dmray.records.disk import read_file
from dmray.records.folders import SweepFolder
from dmray.redaction import without_secrets
from dmray.specs import IDENTITY_VERSION, Spec, SweepSpec, TrialSpec
from dmray.specs.mistakes import mistakes_of

_UNRECORDED_IDENTITY_VERSION = 2  # of manifests without the field
_LARGEST_MANIFEST = 2**28
_CURE = (
    "restore it from a copy, or remove it and start the sweep again from its file with --resume, which keeps its trials"
)


class _Manifest(Spec):
    sweep: SweepSpec
    trials: tuple[TrialSpec, ...]
    identity_version: int


def write_manifest(plan: Plan, folder: SweepFolder) -> None:
    """Write the sweep and its trials to the folder, without MLflow's password. Reports need it and the ledgers."""
    manifest = _Manifest(sweep=plan.sweep, trials=plan.trials, identity_version=IDENTITY_VERSION)
    content = manifest.model_dump(mode="json")
    if uri := plan.sweep.tracking.mlflow_uri:
        content["sweep"]["tracking"]["mlflow_uri"] = without_secrets(uri)
    write_json(folder.manifest, content)


def read_manifest(folder: SweepFolder) -> Plan:
    """Read the plan of the sweep's last start.

    Raises:
        StorageError: there is no sweep in the folder, its manifest is damaged, or another version of dmray made its
            ids, so that no trial would be found.
    """
    path = folder.manifest
    try:
        text = read_file(path, _LARGEST_MANIFEST)
    except FileNotFoundError as cause:
        raise StorageError(
            f"{path.parent}: no sweep here (no {path.name}); name the folder <storage>/<sweep>, for example "
            "runs/quickstart"
        ) from cause
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise StorageError(f"{path}: not the manifest of a sweep ({cause}); {_CURE}") from cause
    if not isinstance(content, dict):
        raise StorageError(f"{path}: not the manifest of a sweep ({type(content).__name__} instead of fields); {_CURE}")
    version = content.get("identity_version", _UNRECORDED_IDENTITY_VERSION)
    if isinstance(version, int) and "trials" in content and version != IDENTITY_VERSION:
        raise StorageError(
            f"{path}: written by a version of dmray with other trial ids (identity_version {version}, here "
            f"{IDENTITY_VERSION}). To read or continue this sweep, check out the git commit in its ledgers; to "
            "run it again with this version, give another --storage, or another name in the sweep file"
        )
    try:
        manifest = _Manifest.model_validate_json(text)
    except ValidationError as invalid:
        mistake = mistakes_of(invalid, _Manifest)[0]
        raise StorageError(
            f"{path}: not the manifest of a sweep of this version: {mistake}; if a package that the sweep used is not "
            f"installed here, install it, else {_CURE}"
        ) from None
    return Plan(manifest.sweep, manifest.trials)
