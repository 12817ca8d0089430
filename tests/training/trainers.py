"""Trainers of tiny policies on random data, and what is compared of two of them."""

from __future__ import annotations

import torch

from dmray.datasets import Windows
from dmray.policies import SequencePolicy
from dmray.specs import MethodName, TrainingSpec
from dmray.training import StepMetrics, Trainer
from tests.policies.windows import random_fields, tiny_policy, windows_of

SPEC = TrainingSpec(steps=10, batch_size=3, learning_rate=1e-2, warmup_steps=4)


class RandomCuts:
    """Windows of fixed trajectories, their first timestep by the generator."""

    def __init__(self, policy: SequencePolicy, num_valid: int = 4) -> None:
        self._fields, self._tokens, self._num_valid = random_fields(3, 8), policy.tokens, num_valid

    def sample(self, generator: torch.Generator) -> Windows:
        first = int(torch.randint(0, 4, (), generator=generator))
        return windows_of(self._fields, self._tokens, first, 5, self._num_valid)


def trainer_of(method: MethodName, spec: TrainingSpec = SPEC, seed: int = 0, dropout: float = 0.0) -> Trainer:
    policy = tiny_policy(method, dropout=dropout)
    return Trainer(policy, RandomCuts(policy), spec, seed)


def numbers(metrics: StepMetrics) -> list[float]:
    return torch.cat([metrics.stage_losses, metrics.grad_norms]).tolist()


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.policy.parameters()])
