"""The policy and the sampler that a trial's spec and data set describe."""

from __future__ import annotations

from dmray.datasets import Episodes, Statistics, WindowSampler
from dmray.policies import PolicyShape, SequencePolicy, initial_policy, policy_recipe
from dmray.specs import TrialSpec
from dmray.tasks import Task


def build_policy(trial: TrialSpec, task: Task, episodes: Episodes) -> SequencePolicy:
    """The policy before the first step, with the statistics of the data set, on the CPU."""
    shape = PolicyShape(
        observation_dim=task.observation_dim,
        action_dim=task.action_dim,
        action_limit=task.action_limit,
        max_timesteps=max(task.horizon, int(episodes.lengths.max())),
    )
    policy = initial_policy(policy_recipe(trial, shape), trial.seed)
    statistics = Statistics.of(episodes)
    policy.set_statistics(statistics.mean, statistics.std)
    if policy.recipe.predicts_differences:
        differences = Statistics.of_differences(episodes)
        policy.set_difference_statistics(differences.mean, differences.std)
    return policy


def build_sampler(trial: TrialSpec, policy: SequencePolicy, episodes: Episodes, device: str) -> WindowSampler:
    """The trial's batches, of which the data set is copied to `device`."""
    return WindowSampler(
        episodes,
        policy.tokens,
        context_length=trial.model.context_length,
        batch_size=trial.training.batch_size,
        episode_weighting=trial.training.episode_weighting,
        anchor=trial.training.window_anchor,
        device=device,
    )
