"""From a trial's spec and its data to the trainer that runs it."""

from __future__ import annotations

import torch

from dmray.data import Episodes, Statistics, WindowSampler
from dmray.execution.checkpoints import Origin, policy_recipe
from dmray.execution.job import TrialJob
from dmray.policies import PolicyShape, SequencePolicy
from dmray.tasks import Task
from dmray.training import Trainer


def build_trainer(job: TrialJob, task: Task, episodes: Episodes) -> tuple[Trainer, Origin]:
    """A trainer before its first step on the job's device, and what its checkpoints say of where they are from."""
    trial, device = job.trial, job.device
    shape = PolicyShape(
        observation_dim=task.observation_dim,
        action_dim=task.action_dim,
        action_limit=task.action_limit,
        max_timesteps=max(task.horizon, int(episodes.lengths.max())),
    )
    recipe = policy_recipe(trial, shape)
    torch.manual_seed(trial.seed)
    policy = SequencePolicy(recipe)
    statistics = Statistics.of(episodes)
    policy.set_statistics(statistics.mean, statistics.std)
    sampler = WindowSampler(
        episodes,
        policy.tokens,
        context_length=trial.model.context_length,
        batch_size=trial.training.batch_size,
        episode_weighting=trial.training.episode_weighting,
        device=device,
    )
    policy = policy.to(device)
    trainer = Trainer(policy, sampler, trial.training, trial.seed, device, job.capture)
    return trainer, Origin(trial, episodes.fingerprint, recipe, task.reference)
