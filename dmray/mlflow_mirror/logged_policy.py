"""A checkpoint as an MLflow model: dmray's own file of tensors, and an MLmodel that names dmray's loader for it.

Nothing in it is unpickled: MLflow imports `LOADER`, which reads the file with `weights_only=True`. A run has two such
models, `final` and `best`; `runs:/<run_id>/final` and `models:/<model_id>` both lead there.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmray.mlflow_mirror.metric_points import Point

LOADER = "dmray.inference.pyfunc"
CHECKPOINT_FILE = "policy.pt"
MODEL_TYPE = "dmray policy"
_READY = "READY"


@dataclass(frozen=True)
class LoggedPolicy:
    """One checkpoint of a trial. `points`: its evaluation, as the run has it; `facts`: see `attempt` records."""

    name: str
    step: int
    checkpoint: Path
    params: Mapping[str, str]
    points: tuple[Point, ...]
    facts: Mapping[str, Any] | None


def ensure_logged(client: Any, experiment: str, run_id: str, policy: LoggedPolicy) -> None:
    """Make the run's model of that name, or what is missing of it; READY is set last, so READY is complete."""
    model = find_logged(client, experiment, run_id, policy.name)
    if model is None:
        tags = {"dmray.step": str(policy.step)}
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
    """The run's points once more as the model's (the same points, so the run keeps them once), and as its output."""
    from mlflow.entities import LoggedModelOutput, Metric

    points = [Metric(point.key, point.value, point.time_ms, point.step, model_id=model_id) for point in policy.points]
    client.log_batch(run_id, metrics=points, synchronous=True)
    outputs = client.get_run(run_id).outputs
    if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=policy.step)])


def _write_files(folder: Path, policy: LoggedPolicy, run_id: str, model_id: str) -> None:
    from mlflow.models import Model

    shutil.copyfile(policy.checkpoint, folder / CHECKPOINT_FILE)
    signature = None if policy.facts is None else _signature(policy.facts)
    model = Model(run_id=run_id, model_id=model_id, signature=signature)
    model.add_flavor(
        "python_function", loader_module=LOADER, data=CHECKPOINT_FILE, python_version=platform.python_version()
    )
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
    return ModelSignature(Schema(inputs), outputs, ParamSchema([ParamSpec("first_timestep", "long", 0)]))
