"""The policy: one sequence model per stage, and the one encoding of raw values that training and acting share.

Deliberate differences from the authors' code: the subgoal before an episode's first is a zero state, encoded like any
other, on both paths; their evaluation feeds a zero that is not encoded. Timesteps belong to their states in windows
shorter than K too; their training pads timesteps on the left and the rest on the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from dmray.fields import Field, Token
from dmray.models.selective_scan import scan_backend
from dmray.policies.recipe import PolicyRecipe
from dmray.policies.sequence_model import SequenceModel

if TYPE_CHECKING:
    from dmray.datasets import Windows


class SequencePolicy(nn.Module):
    """A method's stages and the data set's statistics. Initial weights follow from the recipe and torch's global RNG.

    Encoded units: states and subgoals are z-scored, returns-to-go divided by the recipe's scale, actions as they are.
    """

    state_mean: Tensor
    state_std: Tensor

    def __init__(self, recipe: PolicyRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.method = recipe.resolved_method()
        self.register_buffer("state_mean", torch.zeros(recipe.shape.observation_dim))
        self.register_buffer("state_std", torch.ones(recipe.shape.observation_dim))
        self.stages: nn.ModuleList = nn.ModuleList(
            SequenceModel(layout, self.method.backbone, recipe.model, recipe.shape) for layout in self.method.stages
        )

    def set_statistics(self, mean: np.ndarray | Tensor, std: np.ndarray | Tensor) -> None:
        """Set the states' mean and (positive) standard deviation, (observation_dim,) each."""
        for buffer, values in ((self.state_mean, mean), (self.state_std, std)):
            assert tuple(values.shape) == tuple(buffer.shape), "statistics of another task"
            buffer.copy_(torch.as_tensor(values))
        assert bool((self.state_std > 0).all()), "a standard deviation is not positive"

    @property
    def tokens(self) -> frozenset[Token]:
        """What training windows must hold: every stage's inputs and labels."""
        inputs = {token for stage in self.method.stages for token in stage.tokens}
        return frozenset(inputs | {Token(stage.target) for stage in self.method.stages})

    @property
    def takes_target(self) -> bool:
        """Whether the policy is told which return to reach."""
        return self.method.takes_target

    @property
    def stage_names(self) -> tuple[str, ...]:
        """What each stage predicts."""
        return tuple(stage.target.value for stage in self.method.stages)

    @property
    def scan_backend(self) -> str | None:
        """What computes the selective scan on the policy's device; None for a policy that has none."""
        if not self.method.backbone.uses_selective_scan:
            return None
        return scan_backend(self.state_mean.device, self.state_mean.dtype)

    def stage_parameters(self) -> tuple[tuple[Parameter, ...], ...]:
        """The parameters of each stage; together all of the policy's, none twice."""
        return tuple(tuple(stage.parameters()) for stage in self.stages)

    def encode(self, field: Field, raw: Tensor) -> Tensor:
        """Raw values (..., dim) in the units that networks take and predict."""
        if field is Field.RETURN_TO_GO:
            return raw / self.recipe.return_scale
        return raw if field is Field.ACTION else (raw - self.state_mean) / self.state_std

    def predict(self, windows: Windows) -> tuple[Tensor, ...]:
        """Each stage's predictions (B, T, target dim), encoded, with the data's fields as inputs (teacher forcing)."""
        return self._predict(self._encoded(windows), windows.timesteps)

    def stage_losses(self, windows: Windows) -> Tensor:
        """Mean squared error of each stage over valid timesteps and dimensions, encoded units, (stages,) float32."""
        values = self._encoded(windows)
        predictions = self._predict(values, windows.timesteps)
        valid = windows.valid[:, :, None].float()
        losses = []
        for layout, prediction in zip(self.method.stages, predictions, strict=True):
            errors = (prediction.float() - values[Token(layout.target)]).square() * valid
            losses.append(errors.sum() / (valid.sum() * prediction.shape[-1]))
        return torch.stack(losses)

    def _encoded(self, windows: Windows) -> dict[Token, Tensor]:
        return {token: self.encode(token.field, windows.tokens[token]) for token in self.tokens}

    def _predict(self, values: dict[Token, Tensor], timesteps: Tensor) -> tuple[Tensor, ...]:
        return tuple(stage(values, timesteps) for stage in self.stages)


@dataclass(frozen=True)
class PolicySnapshot:
    """A policy at one moment of its training, to be built again elsewhere. The arrays belong to the snapshot."""

    recipe: PolicyRecipe
    weights: dict[str, np.ndarray]

    def build(self) -> SequencePolicy:
        """The policy on the CPU, in evaluation mode. Leaves torch's RNG as it was."""
        with torch.random.fork_rng(devices=[]):
            policy = SequencePolicy(self.recipe)
        # np.array copies: arrays out of Ray's object store are read-only, which torch warns of
        policy.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in self.weights.items()})
        return policy.eval()


def snapshot(policy: SequencePolicy) -> PolicySnapshot:
    """A copy of the policy's weights and statistics; waits for its device."""
    weights = {name: value.detach().cpu().numpy().copy() for name, value in policy.state_dict().items()}
    return PolicySnapshot(policy.recipe, weights)
