"""What MLflow keeps of a trial, brought back and added to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmray.errors import TrackingError
from dmray.mlflow_mirror.logged_policy import CHECKPOINT_FILE, find_logged
from dmray.mlflow_mirror.store import without_secrets


def download_checkpoint(run_id: str, name: str, folder: Path, uri: str | None) -> Path:
    """The checkpoint of a trial's model `name` (final, best), put into `folder`.

    `uri` None: $MLFLOW_TRACKING_URI.

    Raises:
        TrackingError: no server is named, it does not answer, or the run has no such checkpoint.
    """
    with _client(uri) as (client, address):
        from mlflow.artifacts import download_artifacts

        model = find_logged(client, client.get_run(run_id).info.experiment_id, run_id, name)
        if model is None:
            raise TrackingError(
                f"{without_secrets(address)}: run {run_id} has no model '{name}'; --which final or best"
            )
        place = f"{model.artifact_location}/{CHECKPOINT_FILE}"  # not runs:/, which asks the server of the environment
        return Path(download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=address))


def upload_drawings(run_id: str, files: Sequence[Path], uri: str | None) -> None:
    """Pictures and videos, as artifacts of a trial's run, under the names of the folders that they lie in.

    Raises:
        TrackingError: as `download_checkpoint`.
    """
    with _client(uri) as (client, _):
        for path in files:
            client.log_artifact(run_id, str(path), path.parent.name)


@contextmanager
def _client(uri: str | None) -> Iterator[tuple[Any, str]]:
    """A client and its address; what goes wrong with it inside the block is a `TrackingError`."""
    address = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if address is None:
        raise TrackingError("name the MLflow server with --mlflow-uri, for example sqlite:///runs/mlflow.db")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        yield MlflowClient(tracking_uri=address), address
    except (MlflowException, OSError) as cause:
        raise TrackingError(f"{without_secrets(address)}: {cause}") from cause
