"""What MLflow loads for a policy that it keeps (`loader_module` in the MLmodel file): a function of arrays.

policy = mlflow.pyfunc.load_model("models:/dmray-dm-hopper@hopper-medium-v2")     or runs:/<run_id>/final
actions = policy.predict({"observations": ..., "actions": ..., "returns_to_go": ...})
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dmray.errors import SpecError
from dmray.inference.acting import act_on_windows
from dmray.policies import SequencePolicy
from dmray.registry import unknown
from dmray.trial.checkpoints import load_policy_snapshot

_PARAMS = ("decode", "first_timestep")


class ServedPolicy:
    """Decides what to do at the last timestep of each window: `act_on_windows` as MLflow calls it."""

    def __init__(self, network: SequencePolicy) -> None:
        self.network = network

    def predict(self, model_input: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Actions (B, A) float32.

        `model_input` holds `observations` (B, T, S), `actions` (B, T, A) and, for methods that take a target,
        `returns_to_go` (B, T). `params`: `decode`, any decode mode, default "window"; `first_timestep`, default 0.

        Raises:
            SpecError: as `act_on_windows`, or a parameter of another name.
        """
        given = dict(params or {})
        for name in given:
            if name not in _PARAMS:
                raise SpecError(unknown("parameter", name, _PARAMS))
        return act_on_windows(
            self.network,
            model_input.get("observations", ()),
            model_input.get("actions", ()),
            model_input.get("returns_to_go"),
            decode=str(given.get("decode", "window")),
            first_timestep=int(given.get("first_timestep", 0)),
        )


def _load_pyfunc(data_path: str) -> ServedPolicy:
    """What MLflow calls for a model whose `loader_module` is this one.

    Raises:
        CheckpointError: the file is no checkpoint.
    """
    return ServedPolicy(load_policy_snapshot(Path(data_path))[1].build())
