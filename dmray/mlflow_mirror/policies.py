"""Loads the policy of a trial's MLflow run."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dmray.errors import SpecError
from dmray.mlflow_mirror.models import download_checkpoint
from dmray.registry import unknown

if TYPE_CHECKING:
    from dmray.inference import Policy

_RUN_ID = re.compile(r"^(?:runs:/)?([0-9a-f]{32})(?:/(final|best))?$")


def mlflow_run_of(source: str | Path) -> str | None:
    """The id of the MLflow run that `source` names, as <id> or runs:/<id>/best; None if it names something else."""
    run = _RUN_ID.match(str(source))
    return run.group(1) if run else None


def load_policy_of_run(source: str, checkpoint: str | None, mlflow_uri: str | None = None) -> Policy:
    """The policy of the MLflow run that `source` names; without `checkpoint`, the one in `source`, or the final one.

    Raises:
        SpecError: `checkpoint` is neither final nor best.
        CheckpointError: the file cannot be read.
        TrackingError: MLflow does not answer, or has no such model.
    """
    from dmray.inference import load_policy  # loads torch

    run = _RUN_ID.match(source)
    assert run is not None, f"{source} names no MLflow run"
    if checkpoint not in (None, "final", "best"):
        raise SpecError(f"of an MLflow run, {unknown('checkpoint', str(checkpoint), ('final', 'best'))}")
    with tempfile.TemporaryDirectory() as folder:
        file = download_checkpoint(run.group(1), checkpoint or run.group(2) or "final", Path(folder), mlflow_uri)
        return replace(load_policy(file), folder=None)
