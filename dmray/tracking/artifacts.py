"""What MLflow keeps of a trial, brought back."""

from __future__ import annotations

import os
from pathlib import Path

from dmray.errors import TrackingError
from dmray.tracking.logged_policy import CHECKPOINT_FILE
from dmray.tracking.mlflow_store import without_secrets


def download_checkpoint(run_id: str, name: str, folder: Path, uri: str | None) -> Path:
    """The checkpoint of a trial's model `name` (final, best), put into `folder`.

    `uri` None: $MLFLOW_TRACKING_URI.

    Raises:
        TrackingError: no server is named, it does not answer, or the run has no such checkpoint.
    """
    address = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if address is None:
        raise TrackingError("name the MLflow server with --mlflow-uri, for example sqlite:///runs/mlflow.db")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        found = MlflowClient(tracking_uri=address).download_artifacts(run_id, f"{name}/{CHECKPOINT_FILE}", str(folder))
    except (MlflowException, OSError) as cause:
        raise TrackingError(f"{without_secrets(address)}: run {run_id} has no model '{name}': {cause}") from cause
    return Path(found)
