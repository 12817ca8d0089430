"""The folder that `dmray export` writes: its config.json, and the policy in its model.safetensors, loaded back.

config.json says what the weights do not: the trial's spec, the sizes, the reference returns, the data.
`weights_sha256` is there because a flipped bit in a weight would go unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from dmray.errors import CheckpointError, StorageError
from dmray.files import is_regular_file, read_small
from dmray.frozen import Spec
from dmray.inference.weight_files import CONFIG, SAFETENSORS, read_safetensors, read_weights
from dmray.policies import PolicyShape, PolicySnapshot, policy_recipe
from dmray.registry import short
from dmray.specs import TrialSpec
from dmray.specs.mistakes import mistakes_of
from dmray.tasks import ReferenceScores
from dmray.trial.checkpoints import to_arrays

MODEL_TYPE = "dmray"
_BEGINNING = re.compile(rb'\s*\{\s*"model_type":\s*"dmray"')
_CURE = "export the policy again"


class ExportConfig(Spec):
    """config.json. `step`: how the other files act (`dmray.exports.formats`); None if there are only weights."""

    model_type: Literal["dmray"] = "dmray"
    format_version: Literal[1] = 1
    trial: TrialSpec
    shape: PolicyShape
    reference: ReferenceScores
    optimizer_steps: Annotated[int, Field(ge=0)]
    dataset_fingerprint: str | None
    action_std: tuple[Annotated[float, Field(ge=0.0)], ...] | None
    versions: dict[str, str | None]
    weights_sha256: str | None = None
    step: dict[str, Any] | None = None


def is_exported(path: Path) -> bool:
    """Whether `path` is a folder with the config.json of an export, damaged or not."""
    file = path / CONFIG
    try:
        content = read_small(file) if is_regular_file(file) else b""
    except (StorageError, OSError):  # who loads it says what is wrong
        return False
    try:
        return bool(json.loads(content).get("model_type") == MODEL_TYPE)
    except (ValueError, AttributeError, RecursionError):
        return _BEGINNING.match(content) is not None  # cut off, or damaged


def read_exported(folder: Path) -> tuple[TrialSpec, PolicySnapshot, dict[str, Any]]:
    """The trial, the policy and what `dmray.trial.checkpoints.load_checkpoint` gives beside, of an exported folder.

    Raises:
        CheckpointError: the folder has no weights that dmray loads, a file is damaged, or the trial uses something that
            this installation does not have.
    """
    config, file = _config_in(folder), folder / SAFETENSORS
    if config.weights_sha256 is None:
        raise CheckpointError(
            f"{folder}: was exported without {SAFETENSORS}, and dmray loads no other file of an export; export it with "
            "--format safetensors"
        )
    if hashlib.sha256(read_weights(file)).hexdigest() != config.weights_sha256:
        raise CheckpointError(f"{file}: not the file that was exported (its checksum differs); {_CURE}")
    if config.trial.evaluation.return_scale is None:
        raise CheckpointError(f"{folder / CONFIG}: its trial has no evaluation.return_scale; {_CURE}")
    origin = {
        "reference": asdict(config.reference),
        "dataset_fingerprint": config.dataset_fingerprint,
        "action_std": config.action_std,
    }
    snapshot = PolicySnapshot(policy_recipe(config.trial, config.shape), to_arrays(read_safetensors(file)))
    return config.trial, snapshot, {"origin": origin, "step": config.optimizer_steps}


def _config_in(folder: Path) -> ExportConfig:
    file = folder / CONFIG
    try:
        return ExportConfig.model_validate_json(read_small(file))
    except ValidationError as invalid:
        mistake = mistakes_of(invalid, ExportConfig)[0]
        if any(each["type"] == "json_invalid" for each in invalid.errors()):
            raise CheckpointError(f"{file}: is damaged or cut off: it is no JSON; {_CURE}") from None
        if any(each["loc"] == ("format_version",) for each in invalid.errors()):
            cure = f"load it with the version of dmray that wrote it, or {_CURE}"
            raise CheckpointError(f"{file}: {mistake}; {cure}") from None
        raise CheckpointError(f"{file}: {mistake}; if it comes from another package, install that package") from None
    except (OSError, ValueError) as cause:
        raise CheckpointError(f"{file}: cannot be read ({short(str(cause))}); {_CURE}") from cause
