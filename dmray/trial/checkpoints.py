"""Checkpoints of a trial: everything that a resumed run needs, readable without unpickling code.

    last.pt   the state of the Trainer and the meter, and the snapshots whose evaluations are pending
    best.pt   the weights of the best evaluation so far, with its step and score
    final.pt  the weights after the last step, with the last score

Each has the trial's spec and the policy's shape, so the policy can be built from the file alone.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from dmray.errors import CheckpointError
from dmray.files import write_atomic
from dmray.policies import PolicyRecipe, PolicyShape, PolicySnapshot, policy_recipe
from dmray.specs import TrialSpec
from dmray.specs.mistakes import mistakes_of
from dmray.tasks import ReferenceScores

FORMAT_VERSION = 3


@dataclass(frozen=True)
class Origin:
    """What a checkpoint was made from; training continues only from a checkpoint of the same origin."""

    trial: TrialSpec
    dataset_fingerprint: str
    recipe: PolicyRecipe
    reference: ReferenceScores

    def as_dict(self) -> dict[str, Any]:
        return {
            "version": FORMAT_VERSION,
            "trial_id": self.trial.trial_id,
            "spec": self.trial.model_dump_json(),
            "dataset_fingerprint": self.dataset_fingerprint,
            "shape": asdict(self.recipe.shape),
            "reference": asdict(self.reference),
        }


def save_checkpoint(path: Path, origin: Origin, content: dict[str, Any]) -> None:
    """Write atomically; `content` holds tensors, numbers, strings and containers of them only."""
    stream = io.BytesIO()
    torch.save({"origin": origin.as_dict(), **content}, stream)
    write_atomic(path, stream.getvalue())


def load_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint file.

    Raises:
        CheckpointError: there is no file, or it is not a checkpoint, truncated, or of another format version.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        version = content["origin"]["version"]
    except FileNotFoundError as cause:
        raise CheckpointError(f"{path}: no such file") from cause
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, UnpicklingError) as cause:
        what = f"{path}: not a dmray checkpoint, or a truncated one ({type(cause).__name__})"
        raise CheckpointError(f"{what}; if it is a trial's last.pt, delete it and the trial starts over") from cause
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: written in format {version}, this dmray reads {FORMAT_VERSION}")
    return content


def resume_checkpoint(path: Path, origin: Origin, device: str) -> dict[str, Any] | None:
    """The checkpoint to continue from, None when there is none yet.

    Raises:
        CheckpointError: it belongs to another spec, or the data set has changed since.
    """
    if not path.exists():
        return None
    content = load_checkpoint(path, device)
    theirs, ours = content["origin"], origin.as_dict()
    for key, what in (("trial_id", "another spec"), ("dataset_fingerprint", "another content of the data set")):
        if theirs[key] != ours[key]:
            raise CheckpointError(
                f"{path}: belongs to {what} ({key} {theirs[key]}, now {ours[key]}); restore the old one, "
                "or remove the trial's folder to start over"
            )
    return content


def load_policy_snapshot(path: Path) -> tuple[TrialSpec, PolicySnapshot]:
    """The trial and the policy stored in `best.pt` or `last.pt`.

    Raises:
        CheckpointError: `load_checkpoint` fails, or its trial uses something that this installation does not have.
    """
    content = load_checkpoint(path)
    try:
        trial = TrialSpec.model_validate_json(content["origin"]["spec"])
    except ValidationError as invalid:
        mistake = mistakes_of(invalid, TrialSpec)[0]
        raise CheckpointError(f"{path}: {mistake}; if it comes from another package, install that package") from None
    recipe = policy_recipe(trial, PolicyShape(**content["origin"]["shape"]))
    weights = content["weights"] if "weights" in content else content["trainer"]["policy"]
    return trial, PolicySnapshot(recipe, to_arrays(weights))


def to_tensors(weights: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}


def to_arrays(weights: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in weights.items()}
