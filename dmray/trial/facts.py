"""What a record says of the data set and of the policy, found out in passing."""

from __future__ import annotations

from typing import Any

from dmray.datasets import Episodes
from dmray.policies import SequencePolicy


def describe_data(episodes: Episodes) -> dict[str, Any]:
    """Sizes and undiscounted returns; one pass over the rewards."""
    returns = episodes.returns()
    return {
        "episodes": episodes.num_episodes,
        "transitions": episodes.num_transitions,
        "length_mean": float(episodes.lengths.mean()),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
    }


def describe_policy(policy: SequencePolicy) -> dict[str, Any]:
    """What one must know to call it."""
    shape = policy.recipe.shape
    return {
        "observation_dim": shape.observation_dim,
        "action_dim": shape.action_dim,
        "takes_target": policy.takes_target,
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
    }
