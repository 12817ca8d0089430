"""What a trial will cost, before anything is started: training steps, environment steps, disk.

Sizes are closed formulas so that planning imports no torch; a test holds them equal to the built networks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from dmray.methods import METHODS, PolicyShape
from dmray.specs import TrialSpec
from dmray.tasks import Task, task_of

_FLOAT_BYTES = 4
_EPISODE_BYTES = 24  # one return and one length as JSON
_TRAIN_RECORD_BYTES = 260


@dataclass(frozen=True)
class Cost:
    """Sums over trials. `env_steps` is the most there can be: every episode up to its horizon."""

    training_steps: int = 0
    env_steps: int = 0
    disk_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.training_steps + other.training_steps,
            self.env_steps + other.env_steps,
            self.disk_bytes + other.disk_bytes,
        )


def total_cost(trials: Iterable[TrialSpec], log_every_steps: int) -> Cost:
    """The sum of `trial_cost` over `trials`."""
    return sum((trial_cost(trial, log_every_steps) for trial in trials), Cost())


def trial_cost(trial: TrialSpec, log_every_steps: int) -> Cost:
    """One trial's cost; its disk is three checkpoints (last with the moments, best, final) and its ledger."""
    task, evaluation, steps = task_of(trial.dataset), trial.evaluation, trial.training.steps
    episodes = evaluation.episodes * num_targets(trial)
    evaluations = num_evaluations(trial)
    weights = num_parameters(trial, task) * _FLOAT_BYTES
    ledger = evaluations * episodes * _EPISODE_BYTES + steps // log_every_steps * _TRAIN_RECORD_BYTES
    return Cost(steps, evaluations * episodes * task.horizon, 5 * weights + ledger)


@dataclass(frozen=True)
class Work:
    """One pass of the networks over a batch of windows: multiply-adds count as two FLOPs, `layers` over all stages."""

    flops: float
    layers: int


def training_work(trial: TrialSpec) -> Work:
    """One optimizer step: forward, and twice as much backward."""
    forward = forward_work(trial, trial.training.batch_size)
    return Work(3 * forward.flops, forward.layers)


def forward_work(trial: TrialSpec, rows: int) -> Work:
    """One forward pass over `rows` windows; in mode `window` that is one decision for `rows` episodes."""
    method = METHODS[trial.method]
    return Work(rows * method.forward_flops(trial.model), trial.model.n_layer * len(method.stages))


def trial_flops(trial: TrialSpec) -> float:
    """FLOPs of the networks in training and in evaluation (window decoding, all horizons): what trials compare by."""
    env_steps = num_evaluations(trial) * trial.evaluation.episodes * num_targets(trial) * task_of(trial.dataset).horizon
    return training_work(trial).flops * trial.training.steps + forward_work(trial, 1).flops * env_steps


def num_evaluations(trial: TrialSpec) -> int:
    """Every `every_steps`, and at the end."""
    return ceil(trial.training.steps / trial.evaluation.every_steps)


def num_targets(trial: TrialSpec) -> int:
    """Target returns that the method is evaluated under (1, none, for methods without a return-to-go)."""
    targets = trial.evaluation.target_returns or task_of(trial.dataset).target_returns
    return len(targets) if METHODS[trial.method].takes_target else 1


def num_parameters(trial: TrialSpec, task: Task) -> int:
    """Trainable parameters of all stages (timestep table of the horizon's length; a longer trajectory adds rows)."""
    shape = PolicyShape(task.observation_dim, task.action_dim, task.action_limit, task.horizon)
    return METHODS[trial.method].num_parameters(trial.model, shape)
