"""The cost of a trial, computed before it starts: training steps, environment steps, disk space, FLOPs.

Sizes of networks are formulas, so that planning does not import torch; tests compare them with the built networks.
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
    """The cost of one or several trials. `env_steps` is an upper bound: every episode runs to its horizon."""

    training_steps: int = 0
    env_steps: int = 0
    disk_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.training_steps + other.training_steps,
            self.env_steps + other.env_steps,
            self.disk_bytes + other.disk_bytes,
        )


def total_cost(trials: Iterable[TrialSpec], log_every_steps: int, keep_every_steps: int | None = None) -> Cost:
    """The sum of `trial_cost` over `trials`."""
    return sum((trial_cost(trial, log_every_steps, keep_every_steps) for trial in trials), Cost())


def trial_cost(trial: TrialSpec, log_every_steps: int, keep_every_steps: int | None = None) -> Cost:
    """The cost of one trial. Disk: last.pt (with the optimizer's moments), best.pt, final.pt and the ledger.

    `keep_every_steps`: the steps between two numbered checkpoints, which are counted too; None: there are none.
    """
    task, evaluation, steps = task_of(trial.dataset), trial.evaluation, trial.training.steps
    episodes = evaluation.episodes * num_targets(trial)
    evaluations = num_evaluations(trial)
    weights = num_parameters(trial, task) * _FLOAT_BYTES
    ledger = evaluations * episodes * _EPISODE_BYTES + steps // log_every_steps * _TRAIN_RECORD_BYTES
    numbered = steps // keep_every_steps if keep_every_steps else 0
    return Cost(steps, evaluations * episodes * task.horizon, (5 + numbered) * weights + ledger)


@dataclass(frozen=True)
class Work:
    """One pass of the networks over a batch of windows. A multiply-add is two FLOPs; `layers` counts all stages."""

    flops: float
    layers: int


def training_work(trial: TrialSpec) -> Work:
    """The work of one optimizer step: a forward pass, and a backward pass of twice the FLOPs."""
    forward = forward_work(trial, trial.training.batch_size)
    return Work(3 * forward.flops, forward.layers)


def forward_work(trial: TrialSpec, rows: int) -> Work:
    """The work of a forward pass over `rows` windows. In decode mode `window` this is one action of `rows` episodes."""
    method = METHODS[trial.method]
    return Work(rows * method.forward_flops(trial.model), trial.model.n_layer * len(method.stages))


def trial_flops(trial: TrialSpec) -> float:
    """FLOPs of the networks in training and in evaluation (window decoding, episodes to the horizon)."""
    env_steps = num_evaluations(trial) * trial.evaluation.episodes * num_targets(trial) * task_of(trial.dataset).horizon
    return training_work(trial).flops * trial.training.steps + forward_work(trial, 1).flops * env_steps


def num_evaluations(trial: TrialSpec) -> int:
    """The number of evaluations: one every `every_steps` steps, and one at the end."""
    return ceil(trial.training.steps / trial.evaluation.every_steps)


def num_targets(trial: TrialSpec) -> int:
    """The number of target returns that are evaluated; 1 for methods without a return-to-go."""
    targets = trial.evaluation.target_returns or task_of(trial.dataset).target_returns
    return len(targets) if METHODS[trial.method].takes_target else 1


def num_parameters(trial: TrialSpec, task: Task) -> int:
    """Trainable parameters of all stages.

    The table of timesteps has a row for each step up to the horizon. A data set with longer trajectories adds rows,
    which are not counted here.
    """
    return METHODS[trial.method].num_parameters(trial.model, policy_shape(task))


def policy_shape(task: Task) -> PolicyShape:
    """The sizes of a policy of this task whose data set has no longer episodes than the simulator."""
    return PolicyShape(task.observation_dim, task.action_dim, task.action_limit, task.horizon)
