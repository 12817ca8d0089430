"""The policy: one sequence model per stage, and the encoding of raw values, which training and acting share.

Deliberate differences from the authors' code: before the first subgoal of an episode we use a zero state that is
encoded like any other state, in training and in evaluation; their evaluation uses a zero that is not encoded. In
windows shorter than K we pad timesteps and all other fields on the right; their training pads timesteps on the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from dmray.errors import CheckpointError
from dmray.fields import Field, Token
from dmray.methods import METHODS, ActionInput, Method, PolicyShape, SubgoalHead, SubgoalTarget
from dmray.models import BackboneConfig
from dmray.models.selective_scan import scan_backend
from dmray.policies.sequence_model import SequenceModel
from dmray.registry import short_repr
from dmray.specs import LossMean, TrialSpec

if TYPE_CHECKING:
    from dmray.datasets import Windows


@dataclass(frozen=True)
class PolicyRecipe:
    """A policy without its weights. Returns-to-go are divided by `return_scale` before they enter the network."""

    method: str
    model: BackboneConfig
    action_input: ActionInput
    shape: PolicyShape
    return_scale: float
    subgoal_head: SubgoalHead = "published"
    subgoal_target: SubgoalTarget = "state"

    def resolved_method(self) -> Method:
        """The method with the action token of `action_input` and the head of `subgoal_head`."""
        return METHODS[self.method].with_action_input(self.action_input).with_subgoal_head(self.subgoal_head)

    @property
    def predicts_differences(self) -> bool:
        """Whether subgoals are differences from the present state; otherwise they are states, or there are none."""
        return self.subgoal_target == "difference" and METHODS[self.method].predicts_subgoals


def policy_recipe(trial: TrialSpec, shape: PolicyShape) -> PolicyRecipe:
    """The recipe of a planned trial's policy."""
    assert trial.evaluation.return_scale is not None, "a planned trial has a return scale"
    return PolicyRecipe(
        trial.method,
        trial.model,
        trial.training.action_input,
        shape,
        trial.evaluation.return_scale,
        trial.training.subgoal_head,
        trial.training.subgoal_target,
    )


def initial_policy(recipe: PolicyRecipe, seed: int) -> SequencePolicy:
    """The policy with the weights before the first step of a trial with this seed. Does not change torch's global RNG.

    The data set's statistics are not set.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SequencePolicy(recipe)


class SequencePolicy(nn.Module):
    """The networks of a method's stages, and the data set's statistics. Initial weights depend on torch's global RNG.

    Encoded values: states have mean 0 and deviation 1 over the data set, returns-to-go are divided by the recipe's
    scale, actions are not changed. A subgoal is a state and encoded like one; with `subgoal_target` "difference" it is
    the difference of that state from the present one, with mean 0 and deviation 1 over the data set's labels.
    """

    state_mean: Tensor
    state_std: Tensor
    difference_mean: Tensor  # only where subgoals are differences
    difference_std: Tensor

    def __init__(self, recipe: PolicyRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.method = recipe.resolved_method()
        self.register_buffer("state_mean", torch.zeros(recipe.shape.observation_dim))
        self.register_buffer("state_std", torch.ones(recipe.shape.observation_dim))
        if recipe.predicts_differences:
            self.register_buffer("difference_mean", torch.zeros(recipe.shape.observation_dim))
            self.register_buffer("difference_std", torch.ones(recipe.shape.observation_dim))
        self.stages: nn.ModuleList = nn.ModuleList(
            SequenceModel(layout, self.method.backbone, recipe.model, recipe.shape) for layout in self.method.stages
        )

    def set_statistics(self, mean: np.ndarray | Tensor, std: np.ndarray | Tensor) -> None:
        """Set the states' mean and (positive) standard deviation, (observation_dim,) each."""
        _set(self.state_mean, self.state_std, mean, std)

    def set_difference_statistics(self, mean: np.ndarray | Tensor, std: np.ndarray | Tensor) -> None:
        """Set mean and deviation of the labels' differences; for policies whose subgoals are differences."""
        _set(self.difference_mean, self.difference_std, mean, std)

    @property
    def tokens(self) -> frozenset[Token]:
        """The tokens that training windows must contain: inputs and targets of all stages.

        A subgoal is always a state there. Where the policy takes differences, the states that they are from belong to
        the tokens.
        """
        wanted = self._own_tokens
        if self.recipe.predicts_differences:
            wanted |= {Token(Field.STATE, token.lag) for token in wanted if token.field is Field.SUBGOAL}
        return wanted

    @property
    def _own_tokens(self) -> frozenset[Token]:
        inputs = {token for stage in self.method.stages for token in stage.tokens}
        return frozenset(inputs | {Token(stage.target) for stage in self.method.stages})

    @property
    def takes_target(self) -> bool:
        """Whether the policy has the return-to-go as an input."""
        return self.method.takes_target

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The name of the field that each stage predicts."""
        return tuple(stage.target.value for stage in self.method.stages)

    @property
    def scan_backend(self) -> str | None:
        """The implementation of the selective scan on the policy's device; None for policies without Mamba."""
        if not self.method.backbone.uses_selective_scan:
            return None
        return scan_backend(self.state_mean.device, self.state_mean.dtype)

    def stage_parameters(self) -> tuple[tuple[Parameter, ...], ...]:
        """The parameters of each stage. Each parameter of the policy belongs to one stage."""
        return tuple(tuple(stage.parameters()) for stage in self.stages)

    def encode(self, field: Field, raw: Tensor) -> Tensor:
        """Encode raw values (..., dim) of a field; a subgoal is a difference where `predicts_differences`."""
        if field is Field.RETURN_TO_GO:
            return raw / self.recipe.return_scale
        if field is Field.SUBGOAL and self.recipe.predicts_differences:
            return (raw - self.difference_mean) / self.difference_std
        return raw if field is Field.ACTION else (raw - self.state_mean) / self.state_std

    def encode_subgoal(self, states: Tensor, present: Tensor) -> Tensor:
        """Encode raw states (..., S) as the subgoals of raw present states."""
        return self.encode(Field.SUBGOAL, states - present if self.recipe.predicts_differences else states)

    def subgoal_states(self, encoded: Tensor, present: Tensor) -> Tensor:
        """The raw states that encoded subgoals (..., S) mean at raw present states: undoes `encode_subgoal`."""
        if self.recipe.predicts_differences:
            return encoded * self.difference_std + self.difference_mean + present
        return encoded * self.state_std + self.state_mean

    def predict(self, windows: Windows) -> tuple[Tensor, ...]:
        """The encoded predictions (B, T, target dim) of each stage; inputs are the data's fields (teacher forcing)."""
        return self._predict(self._encoded(windows), windows.timesteps)

    def predict_subgoals(self, windows: Windows) -> Tensor:
        """The raw states (B, T, S) that are predicted as subgoals; inputs are the data's fields (teacher forcing)."""
        stage = self.stages[self.stage_names.index(Field.SUBGOAL)]
        encoded: Tensor = stage(self._encoded(windows), windows.timesteps)
        return self.subgoal_states(encoded, windows.tokens[Token(Field.STATE)])

    def stage_losses(self, windows: Windows, mean: LossMean = "valid") -> Tensor:
        """The mean squared error of each stage over timesteps and dimensions, encoded; (stages,) float32.

        `mean`: over valid timesteps, or over all, where padding counts as an error of zero.
        """
        values = self._encoded(windows)
        predictions = self._predict(values, windows.timesteps)
        valid = windows.valid[:, :, None].float()
        losses = []
        for layout, prediction in zip(self.method.stages, predictions, strict=True):
            errors = (prediction.float() - values[Token(layout.target)]).square() * valid
            timesteps = valid.sum() if mean == "valid" else valid.numel()
            losses.append(errors.sum() / (timesteps * prediction.shape[-1]))
        return torch.stack(losses)

    def _encoded(self, windows: Windows) -> dict[Token, Tensor]:
        return {token: self._encoded_token(token, windows) for token in self._own_tokens}

    def _encoded_token(self, token: Token, windows: Windows) -> Tensor:
        if token.field is Field.SUBGOAL and self.recipe.predicts_differences:
            return self.encode_subgoal(windows.tokens[token], windows.tokens[Token(Field.STATE, token.lag)])
        return self.encode(token.field, windows.tokens[token])

    def _predict(self, values: dict[Token, Tensor], timesteps: Tensor) -> tuple[Tensor, ...]:
        return tuple(stage(values, timesteps) for stage in self.stages)


def _set(mean: Tensor, std: Tensor, new_mean: np.ndarray | Tensor, new_std: np.ndarray | Tensor) -> None:
    for buffer, values in ((mean, new_mean), (std, new_std)):
        assert tuple(values.shape) == tuple(buffer.shape), "statistics of another task"
        buffer.copy_(torch.as_tensor(values))
    assert bool((std > 0).all()), "a standard deviation is not positive"


@dataclass(frozen=True)
class PolicySnapshot:
    """The recipe and weights of a policy at one training step, to send to another process. It owns its arrays."""

    recipe: PolicyRecipe
    weights: dict[str, np.ndarray]

    def build(self) -> SequencePolicy:
        """Build the policy on the CPU, in evaluation mode. Does not change torch's global RNG.

        Raises:
            CheckpointError: the weights are not those of a policy with this recipe: a name, a shape or a dtype differs.
        """
        self._check_size()
        with torch.random.fork_rng(devices=[]):
            policy = SequencePolicy(self.recipe)
        self._check_weights(policy.state_dict())
        # np.array copies: arrays from Ray's object store are read-only, and torch warns about such arrays
        policy.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in self.weights.items()})
        return policy.eval()

    def check_finite(self) -> None:
        """Check that no weight is NaN or infinite, and that the states' deviations are positive.

        Raises:
            CheckpointError: one is not; the message has its name.
        """
        for name, values in self.weights.items():
            if not np.isfinite(values).all():
                raise CheckpointError(f"weight '{name}' is not finite: the training diverged, or the file is damaged")
        for name in ("state_std", "difference_std"):
            if name in self.weights and not (self.weights[name] > 0).all():
                raise CheckpointError(f"'{name}' has a deviation that is not positive: the file is damaged")

    def _check_size(self) -> None:
        """Before the networks are built: sizes that only a damaged file has could need all memory."""
        needed = self.recipe.resolved_method().num_parameters(self.recipe.model, self.recipe.shape)
        given = sum(values.size for values in self.weights.values())
        if given < needed:
            raise CheckpointError(f"there are weights for {given:,} parameters, but its policy has {needed:,}")

    def _check_weights(self, expected: Mapping[str, Tensor]) -> None:
        for name in (*(expected.keys() - self.weights.keys()), *(self.weights.keys() - expected.keys())):
            what = "missing" if name in expected else "not a weight of its policy"
            raise CheckpointError(f"weight {short_repr(name)} is {what}")
        for name, wanted in expected.items():
            values = self.weights[name]
            if values.shape != tuple(wanted.shape):
                raise CheckpointError(f"weight '{name}' has shape {values.shape}, but must have {tuple(wanted.shape)}")
            if values.dtype.kind != "f":
                raise CheckpointError(f"weight '{name}' has dtype {values.dtype}, but must be floating-point numbers")


def snapshot(policy: SequencePolicy) -> PolicySnapshot:
    """Copy the policy's weights and statistics. Waits until its device has finished its work."""
    weights = {name: value.detach().cpu().numpy().copy() for name, value in policy.state_dict().items()}
    return PolicySnapshot(policy.recipe, weights)
