"""Windows built from whole trajectories, as the contract of `dmray.data.Windows` says, for tests without a data set."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from dmray.datasets import Windows
from dmray.fields import Field, Token
from dmray.methods import METHODS as REGISTRY
from dmray.methods import ActionInput, SubgoalHead, SubgoalTarget
from dmray.models import BackboneConfig
from dmray.policies import PolicyRecipe, PolicyShape, SequencePolicy
from dmray.specs import MethodName

METHODS: tuple[MethodName, ...] = ("dt", "dm", "dm+r", "hdt", "hdm", "dt-r", "bc", "dlstm")
PAPER: tuple[MethodName, ...] = METHODS[:5]
SHAPE = PolicyShape(observation_dim=3, action_dim=2, action_limit=0.5, max_timesteps=16)
Fields = dict[Field, Tensor]


def config_of(method: MethodName, **fields: float | str) -> BackboneConfig:
    """The method's config with those of `fields` that it has; tiny unless they say otherwise."""
    tiny: dict[str, float | str] = {"d_model": 16, "n_layer": 2, "context_length": 4, "d_state": 4, "dropout": 0.0}
    config = REGISTRY[method].config
    return config.model_validate({k: v for k, v in (tiny | fields).items() if k in config.model_fields})


def tiny_policy(method: MethodName, action_input: ActionInput = "paper", **fields: float | str) -> SequencePolicy:
    """A policy with far from initial weights, so that every input matters, in evaluation mode."""
    torch.manual_seed(0)
    recipe = PolicyRecipe(method, config_of(method, **fields), action_input, SHAPE, return_scale=10.0)
    policy = SequencePolicy(recipe)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    policy.set_statistics(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.5, 2.0, 1.5]))
    return policy.eval()


def policy_with(method: str, head: SubgoalHead = "published", target: SubgoalTarget = "state") -> SequencePolicy:
    """`tiny_policy` with another head and target of its subgoals, and the same weights."""
    plain = tiny_policy(method)
    policy = SequencePolicy(replace(plain.recipe, subgoal_head=head, subgoal_target=target))
    policy.load_state_dict(plain.state_dict(), strict=False)
    if target == "difference":
        policy.set_difference_statistics(torch.tensor([0.1, 0.2, -0.3]), torch.tensor([2.0, 0.5, 1.0]))
    return policy.eval()


def random_fields(rows: int, length: int, seed: int = 0) -> Fields:
    draw = torch.Generator().manual_seed(seed)
    return {field: torch.randn(rows, length, SHAPE.dim(field), generator=draw) for field in Field}


def lagged(values: Tensor, lag: int) -> Tensor:
    """(B, T, dim) moved `lag` steps later, zeros first."""
    return torch.cat([torch.zeros_like(values[:, :lag]), values[:, : values.shape[1] - lag]], dim=1)


def windows_of(fields: Fields, tokens: Collection[Token], first: int, length: int, num_valid: int) -> Windows:
    """Timesteps [first, first + num_valid) of the trajectories, padded on the right to `length` with noise."""
    last, padding = first + num_valid, length - num_valid
    rows = len(fields[Field.STATE])
    noise = torch.Generator().manual_seed(99)

    def cut(token: Token) -> Tensor:
        values = lagged(fields[token.field], token.lag)[:, first:last]
        return torch.cat([values, torch.randn(rows, padding, values.shape[2], generator=noise)], dim=1)

    timesteps = torch.cat([torch.arange(first, last), torch.zeros(padding, dtype=torch.int64)])
    valid = torch.arange(length) < num_valid
    return Windows({token: cut(token) for token in tokens}, timesteps.repeat(rows, 1), valid.repeat(rows, 1))
