"""Checkpoints as MLflow models: logged with a trial's run, and downloaded from there.

A model is dmray's own file of tensors, and an MLmodel file that names dmray's loader for it. Nothing in it is
unpickled: MLflow imports `LOADER`, which reads the file with `weights_only=True`. A run has two models, `final` and
`best`; `runs:/<run_id>/final` and `models:/<model_id>` both lead there.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmray.errors import TrackingError
from dmray.mlflow_mirror.client import Client, Deadlines, StoreError, checked, first_line, set_environment
from dmray.mlflow_mirror.layout import CHECKPOINT, MODEL_STEP, MODEL_TYPE, Point
from dmray.mlflow_mirror.opening import existing
from dmray.redaction import without_secrets

LOADER = "dmray.inference.pyfunc"
_READY = "READY"


@dataclass(frozen=True)
class LoggedPolicy:
    """A checkpoint of a trial. `points`: its evaluation's; `facts`: `policy` of the attempt's provenance."""

    name: str
    step: int
    checkpoint: Path
    params: Mapping[str, str]
    points: tuple[Point, ...]
    facts: Mapping[str, Any] | None


def ensure_logged(client: Any, experiment: str, run_id: str, policy: LoggedPolicy) -> None:
    """Make the run's model of that name, or complete it; READY is set last, so a READY model is complete."""
    model = find_logged(client, experiment, run_id, policy.name)
    if model is None:
        tags = {MODEL_STEP: str(policy.step)}
        model = client.create_logged_model(experiment, policy.name, run_id, tags, dict(policy.params), MODEL_TYPE)
    if str(model.status) == _READY:
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder), policy, run_id, model.model_id)
        client.log_model_artifacts(model.model_id, folder)
    _link(client, run_id, model.model_id, policy)
    client.finalize_logged_model(model.model_id, _READY)


def find_logged(client: Any, experiment: str, run_id: str, name: str) -> Any | None:
    """The run's model of that name."""
    wanted = f"source_run_id = '{run_id}' AND name = '{name}'"
    return next(iter(client.search_logged_models([experiment], filter_string=wanted, max_results=1)), None)


def _link(client: Any, run_id: str, model_id: str, policy: LoggedPolicy) -> None:
    """Log the run's points as the model's too (the same points: the run has them once), and the model as its output."""
    from mlflow.entities import LoggedModelOutput, Metric

    points = [Metric(point.key, point.value, point.time_ms, point.step, model_id=model_id) for point in policy.points]
    client.log_batch(run_id, metrics=points, synchronous=True)
    outputs = client.get_run(run_id).outputs
    if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=policy.step)])


def _write_files(folder: Path, policy: LoggedPolicy, run_id: str, model_id: str) -> None:
    from mlflow.models import Model

    shutil.copyfile(policy.checkpoint, folder / CHECKPOINT)
    signature = None if policy.facts is None else _signature(policy.facts)
    model = Model(run_id=run_id, model_id=model_id, signature=signature)
    model.add_flavor("python_function", loader_module=LOADER, data=CHECKPOINT, python_version=platform.python_version())
    model.save(str(folder / "MLmodel"))


def _signature(facts: Mapping[str, Any]) -> Any:
    """The arrays that `dmray.inference.pyfunc` takes and gives: B windows of T timesteps."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    number, action_dim = np.dtype(np.float32), facts["action_dim"]
    inputs = [
        TensorSpec(number, (-1, -1, facts["observation_dim"]), "observations"),
        TensorSpec(number, (-1, -1, action_dim), "actions"),
        *([TensorSpec(number, (-1, -1), "returns_to_go")] if facts["takes_target"] else []),
    ]
    outputs = Schema([TensorSpec(number, (-1, action_dim))])
    return ModelSignature(
        Schema(inputs),
        outputs,
        ParamSchema([ParamSpec("decode", "string", "window"), ParamSpec("first_timestep", "long", 0)]),
    )


def download_checkpoint(run_id: str, name: str, folder: Path, uri: str | None) -> Path:
    """Download the checkpoint of a trial's model `name` (final, best) into `folder`; its path.

    `uri` None: $MLFLOW_TRACKING_URI.

    Raises:
        TrackingError: no server is named, it does not answer, or the run has no such checkpoint.
    """
    with _client(uri) as (client, address):
        from mlflow.artifacts import download_artifacts

        model = find_logged(client, client.get_run(run_id).info.experiment_id, run_id, name)
        if model is None:
            raise TrackingError(
                f"{without_secrets(address)}: run {run_id} has no model '{name}'; --checkpoint final or best"
            )
        place = f"{model.artifact_location}/{CHECKPOINT}"  # not runs:/, which asks the server of the environment
        return Path(
            checked(
                lambda: Deadlines().run(
                    lambda: download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=address),
                    upload=True,
                )
            )
        )


def upload_drawings(run_id: str, files: Sequence[Path], uri: str | None) -> None:
    """Log pictures and videos as artifacts of a trial's run, in folders named as those they lie in.

    Raises:
        TrackingError: as `download_checkpoint`.
    """
    with _client(uri) as (client, _):
        for path in files:
            client.log_artifact(run_id, str(path), path.parent.name)


@contextmanager
def _client(uri: str | None) -> Iterator[tuple[Any, str]]:
    """A client and its address; errors of MLflow inside the block are raised as `TrackingError`."""
    address = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if address is None:
        raise TrackingError(
            "an MLflow run needs its MLflow server: name it with --mlflow-uri, for example sqlite:///runs/mlflow.db"
        )
    set_environment()
    address = existing(address)
    try:
        yield Client(address, Deadlines()), address
    except (StoreError, OSError, ImportError) as cause:
        raise TrackingError(f"{without_secrets(address)}: {first_line(cause)}") from cause
