"""The cost of a trial, computed before it starts: training steps, environment steps, disk space, FLOPs.

No number here depends on a machine.

Sizes of networks are formulas, so that planning does not import torch; tests compare them with the built networks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from dmray.methods import METHODS, PolicyShape
from dmray.specs import TrialSpec
from dmray.specs.decode import RECURRENT, STREAM, parse_decode
from dmray.tasks import Task, task_of

_FLOAT_BYTES = 4
_EPISODE_BYTES = 24  # one return and one length as JSON
_TRAIN_RECORD_BYTES = 260


@dataclass(frozen=True)
class Cost:
    """The cost of one or several trials.

    `env_steps` is an upper bound: every episode runs to its horizon, and every quick evaluation is repeated with all
    episodes. `least_env_steps`: no quick evaluation is repeated but the first, which always is.
    """

    training_steps: int = 0
    env_steps: int = 0
    disk_bytes: int = 0
    least_env_steps: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.training_steps + other.training_steps,
            self.env_steps + other.env_steps,
            self.disk_bytes + other.disk_bytes,
            self.least_env_steps + other.least_env_steps,
        )


def total_cost(trials: Iterable[TrialSpec], log_every_steps: int) -> Cost:
    """The sum of `trial_cost` over `trials`."""
    return sum((trial_cost(trial, log_every_steps) for trial in trials), Cost())


def trial_cost(trial: TrialSpec, log_every_steps: int) -> Cost:
    """The cost of one trial. Disk: last.pt (with the optimizer's moments), best.pt, final.pt and the ledger."""
    task, steps = task_of(trial.dataset), trial.training.steps
    episodes = _episodes(trial)
    weights = num_parameters(trial, task) * _FLOAT_BYTES
    ledger = episodes.most * _EPISODE_BYTES + steps // log_every_steps * _TRAIN_RECORD_BYTES
    return Cost(steps, episodes.most * task.horizon, 5 * weights + ledger, episodes.least * task.horizon)


class _Episodes(NamedTuple):
    least: int
    most: int


def _episodes(trial: TrialSpec) -> _Episodes:
    """The episodes of all evaluations under all targets: if no, and if every, quick evaluation has to be repeated."""
    full, quick = trial.evaluation.episodes, trial.evaluation.quick_episodes
    during_training, targets = num_evaluations(trial) - 1, num_targets(trial)  # without the last one, which is full
    if quick is None:
        everything = (during_training + 1) * full * targets
        return _Episodes(everything, everything)
    least = during_training * quick + (2 if during_training else 1) * full
    return _Episodes(least * targets, (during_training * (quick + full) + full) * targets)


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


def decode_work(trial: TrialSpec, rows: int, states: int | None) -> Work:
    """The work of one action of `rows` episodes. `states`: how many states the decode mode keeps; None: the window."""
    window = forward_work(trial, rows)
    return window if states is None else Work(window.flops * states / trial.model.context_length, window.layers)


def decode_states(decode: str) -> int | None:
    """How many states a decode mode of dmray keeps for each episode; None: it runs the window at each step."""
    mode, argument = parse_decode(decode)
    return {STREAM.name: argument, RECURRENT.name: 1}.get(mode.name)


@dataclass(frozen=True)
class NetworkFlops:
    """FLOPs of a trial's networks in training, and in evaluation (window decoding, episodes to the horizon)."""

    training: float
    evaluation: float


def network_flops(trial: TrialSpec) -> NetworkFlops:
    """FLOPs of the trial's networks."""
    env_steps = _episodes(trial).most * task_of(trial.dataset).horizon
    return NetworkFlops(training_work(trial).flops * trial.training.steps, forward_work(trial, 1).flops * env_steps)


def trial_flops(trial: TrialSpec) -> float:
    """FLOPs of the trial's networks in training and evaluation together."""
    flops = network_flops(trial)
    return flops.training + flops.evaluation


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
