"""A stored policy as a function of arrays, for callers without a simulator: MLflow's `pyfunc`, a robot, a notebook.

    policy = mlflow.pyfunc.load_model("models:/dmray-dm-hopper@hopper-medium-v2")     or runs:/<run_id>/final
    actions = policy.predict({"observations": ..., "actions": ..., "returns_to_go": ...})

Shapes: B windows, T timesteps of one episode each, S observation_dim, A action_dim; raw values, float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmray.errors import SpecError
from dmray.fields import Field, Token
from dmray.policies import SequenceModel, SequencePolicy
from dmray.trial.checkpoints import load_policy_snapshot


class ServedPolicy:
    """Decides what to do at the last timestep of each window, as decode mode `window` does.

    Given an episode from its start the decision is that of an evaluation. A window that starts later tells the
    transformers so by `first_timestep`; what was before it counts as nothing.
    """

    def __init__(self, policy: SequencePolicy) -> None:
        self.policy = policy

    def predict(self, model_input: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Actions (B, A) float32.

        `observations` (B, T, S), the present one last; `actions` (B, T, A), what was done at each (the last one is
        not looked at); `returns_to_go` (B, T) for methods that take a target. `params`: `first_timestep`, default 0.

        Raises:
            SpecError: an array is missing or of another shape, or the episode outlasts the policy's longest.
        """
        return self._decide(self._fields(model_input), int((params or {}).get("first_timestep", 0)))

    def _fields(self, given: Mapping[str, Any]) -> dict[Field, Tensor]:
        """Encoded, (B, T, dim) each; the subgoals are zeros, to be predicted."""
        shape = self.policy.recipe.shape
        rows, steps = (*np.shape(given.get("observations", ())), 0, 0)[:2]
        wanted = {
            Field.STATE: ("observations", (rows, steps, shape.observation_dim)),
            Field.ACTION: ("actions", (rows, steps, shape.action_dim)),
            **({Field.RETURN_TO_GO: ("returns_to_go", (rows, steps))} if self.policy.takes_target else {}),
        }
        fields = {field: self._field(field, given, *how) for field, how in wanted.items()}
        return {**fields, Field.SUBGOAL: torch.zeros_like(fields[Field.STATE])}

    def _field(self, field: Field, given: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Tensor:
        values = np.array(given.get(name, ()), dtype=np.float32)  # a copy: the last action is written into it
        if values.shape != shape or 0 in shape:
            raise SpecError(f"{name}: shape {values.shape}, but this policy takes {shape} (windows, timesteps, ...)")
        raw = torch.from_numpy(values)
        return self.policy.encode(field, raw[:, :, None] if field is Field.RETURN_TO_GO else raw)

    @torch.inference_mode()
    def _decide(self, fields: dict[Field, Tensor], first_timestep: int) -> np.ndarray:
        steps = fields[Field.STATE].shape[1]
        if not 0 <= first_timestep <= self.policy.recipe.shape.max_timesteps - steps:
            longest = self.policy.recipe.shape.max_timesteps
            raise SpecError(f"first_timestep {first_timestep} and {steps} timesteps: episodes have at most {longest}")
        for last in range(steps):
            for stage in self.policy.stages:
                assert isinstance(stage, SequenceModel)
                target = stage.layout.target
                if target is Field.SUBGOAL or last == steps - 1:  # what was done is given, what was aimed at is not
                    fields[target][:, last] = self._predict(stage, fields, last, first_timestep)
        actions: np.ndarray = fields[Field.ACTION][:, -1].numpy()
        return actions

    def _predict(self, stage: SequenceModel, fields: dict[Field, Tensor], last: int, first_timestep: int) -> Tensor:
        """The stage's target at timestep `last` of the window, from the context that ends there."""
        start = max(0, last + 1 - self.policy.recipe.model.context_length)
        values = {token: self._token(token, fields)[:, start : last + 1] for token in stage.layout.tokens}
        rows = len(fields[Field.STATE])
        timesteps = torch.arange(first_timestep + start, first_timestep + last + 1).expand(rows, -1)
        prediction: Tensor = stage(values, timesteps)[:, -1]
        return prediction

    def _token(self, token: Token, fields: dict[Field, Tensor]) -> Tensor:
        """The field `token.lag` timesteps earlier; before the window it is zero, encoded, as before an episode."""
        values = fields[token.field]
        if token.lag == 0:
            return values
        before = self.policy.encode(token.field, torch.zeros_like(values[:, : token.lag]))
        return torch.cat([before, values[:, : -token.lag]], dim=1)[:, : values.shape[1]]


def load(path: Path) -> ServedPolicy:
    """The policy of a checkpoint file.

    Raises:
        CheckpointError: the file is no checkpoint.
    """
    return ServedPolicy(load_policy_snapshot(path)[1].build())


def _load_pyfunc(data_path: str) -> ServedPolicy:
    """What MLflow calls for a model whose `loader_module` is this one."""
    return load(Path(data_path))
