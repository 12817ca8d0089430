"""The MLflow model of a policy. MLflow loads it through this module (`loader_module` in the MLmodel file).

policy = mlflow.pyfunc.load_model("models:/dmray-dm-hopper@hopper-medium-v2")     or runs:/<run_id>/final
actions = policy.predict({"observations": ..., "actions": ..., "returns_to_go": ...})
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dmray.arguments import mapping
from dmray.errors import SpecError
from dmray.inference.acting import act_on_windows
from dmray.policies import SequencePolicy
from dmray.registry import unknown
from dmray.trial.checkpoints import load_policy_snapshot

_PARAMS = ("decode", "first_timestep")


class ServedPolicy:
    """A policy with the method that MLflow calls; it returns the result of `act_on_windows`."""

    def __init__(self, network: SequencePolicy) -> None:
        self.network = network

    def predict(self, model_input: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> np.ndarray:
        """The actions (B, A) float32 at the last timestep of each window.

        `model_input` has `observations` (B, T, S), `actions` (B, T, A) and, for methods that take a target return,
        `returns_to_go` (B, T). `params`: `decode` (a decode mode, default "window") and `first_timestep` (default 0).

        Raises:
            SpecError: as `act_on_windows`, or a parameter is unknown.
        """
        given = dict(mapping("params", params or {}))
        model_input = mapping("model_input", model_input)
        for name in given:
            if name not in _PARAMS:
                raise SpecError(unknown("parameter", name, _PARAMS))
        return act_on_windows(
            self.network,
            model_input.get("observations", ()),
            model_input.get("actions", ()),
            model_input.get("returns_to_go"),
            decode=given.get("decode", "window"),
            first_timestep=given.get("first_timestep", 0),
        )


def _load_pyfunc(data_path: str) -> ServedPolicy:
    """Load a policy. MLflow calls this function for models whose `loader_module` is this module.

    Raises:
        CheckpointError: the file is not a checkpoint.
    """
    return ServedPolicy(load_policy_snapshot(Path(data_path))[1].build())
