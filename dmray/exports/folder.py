"""Export a policy: one folder with its files, config.json and the model card, whole or not at all."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmray.errors import SpecError, StorageError
from dmray.exports.card import CardFacts, model_card
from dmray.exports.formats import FORMATS, Recorded, require_package, write_format
from dmray.exports.scores import scores_of
from dmray.files import as_storage_error, replaced_folder, user_path
from dmray.inference import Policy
from dmray.inference.exported import ExportConfig, is_exported
from dmray.inference.weight_files import CONFIG, SAFETENSORS
from dmray.records.provenance import version_of
from dmray.registry import short_repr, unknown

WEIGHTS, CARD = "safetensors", "README.md"
ALL_FORMATS = (WEIGHTS, *FORMATS)
_WRITTEN = {CONFIG, CARD, SAFETENSORS, *(each.file for each in FORMATS.values())}
_PACKAGES = ("dmray", "torch", "onnx", "onnxscript", "onnxruntime", "safetensors")


@dataclass(frozen=True)
class Export:
    """What was written: the folder and its files by format.

    `largest_difference`: of an action of these files from dmray's own; None where there are only weights.
    """

    folder: Path
    files: dict[str, Path]
    largest_difference: float | None


def export(
    policy: Policy, folder: Path, formats: Sequence[str], *, decode: str | None = None, force: bool = False
) -> Export:
    """Write the folder. `decode`: of the files that act without dmray; None: that of the policy's sweep.

    Raises:
        SpecError: a format is unknown or named twice, `decode` has no effect, or the policy cannot be exported so.
        StorageError: the folder exists and `force` is false, it is no export, or it cannot be written.
        MissingPackageError: a format needs a package that is not installed.
    """
    _check_formats(formats, decode)
    target = user_path(folder)
    _check_target(target, force)
    scores = scores_of(policy)
    network = policy.snapshot.build().requires_grad_(False)
    acting = [name for name in formats if name != WEIGHTS]
    recorded = Recorded(network, policy.decode if decode is None else decode) if acting else None
    files = {name: SAFETENSORS if name == WEIGHTS else FORMATS[name].file for name in formats}
    versions = {"python": platform.python_version(), **{name: version_of(name) for name in _PACKAGES}}
    with as_storage_error(target, "give another folder"), replaced_folder(target) as part:
        part.mkdir()
        differences = [write_format(name, recorded, part) for name in acting if recorded is not None]
        largest = max(differences, default=None)
        described = None if recorded is None else recorded.description
        digest = _write_weights(policy, part / SAFETENSORS) if WEIGHTS in formats else None
        config = _config(policy, versions, digest, described)
        (part / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        card = model_card(CardFacts(policy, scores, files, described, largest, versions))
        (part / CARD).write_text(card, encoding="utf-8")
    return Export(target, {name: target / file for name, file in files.items()}, largest)


def _check_formats(formats: Sequence[str], decode: str | None) -> None:
    if not formats or len(set(formats)) < len(formats):
        raise SpecError(f"format: give each once, and at least one of {', '.join(ALL_FORMATS)}")
    for name in formats:
        if name not in ALL_FORMATS:
            raise SpecError(unknown("format", name, ALL_FORMATS))
    if decode is not None and set(formats) == {WEIGHTS}:
        raise SpecError(
            f"decode {decode}: {SAFETENSORS} has the weights alone, which act in every decode mode; leave it out, or "
            f"name one of {', '.join(FORMATS)}"
        )


def _check_target(folder: Path, force: bool) -> None:
    try:
        occupied = folder.exists() or folder.is_symlink()
    except OSError as cause:
        raise StorageError(f"{folder}: cannot be used ({cause.strerror}); give another folder") from cause
    if occupied and not force:
        raise StorageError(f"{folder}: exists; give another folder, or --force to replace an export")
    if occupied and (folder.is_symlink() or not is_exported(folder)):
        raise StorageError(f"{folder}: is no export of dmray, so --force does not replace it; give another folder")
    with as_storage_error(folder, "give another folder"):
        others = sorted({each.name for each in folder.iterdir()} - _WRITTEN) if occupied else []
    if others:
        raise StorageError(
            f"{folder}: has {short_repr(others[0])}, which no export wrote, and --force would delete it; move it, or "
            "give another folder"
        )


def _write_weights(policy: Policy, path: Path) -> str:
    """Write the weights; returns their SHA-256."""
    content: bytes = require_package("safetensors.numpy").save(
        policy.snapshot.weights, metadata={"format": "pt", "library": "dmray"}
    )
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _config(
    policy: Policy, versions: dict[str, str | None], digest: str | None, step: dict[str, Any] | None
) -> ExportConfig:
    return ExportConfig(
        trial=policy.trial,
        shape=policy.snapshot.recipe.shape,
        reference=policy.task.reference,
        optimizer_steps=policy.step,
        dataset_fingerprint=policy.dataset_fingerprint,
        action_std=policy.action_std,
        versions=versions,
        weights_sha256=digest,
        step=step,
    )
