"""What a trial will cost, before anything is started: training steps, environment steps, disk.

Sizes are closed formulas so that planning imports no torch; a test holds them equal to the built networks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from dmray.specs import MethodName, ModelSpec, TrialSpec
from dmray.tasks import Task, task_of

RETURN_CONDITIONED = frozenset({"dt", "dm+r"})
TRANSFORMERS = frozenset({"dt", "hdt"})
_FLOAT_BYTES = 4
_Stage = tuple[tuple[int, ...], int]  # sizes of the tokens that it embeds, size of what it predicts
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
    """One forward pass over `rows` windows; in mode `window` that is one decision of `rows` episodes."""
    model, transformer = trial.model, trial.method in TRANSFORMERS
    weights = _transformer(model) if transformer else _mamba(model)
    flops = 0.0
    for inputs, _ in _stages(trial, task_of(trial.dataset)):
        tokens = model.context_length * len(inputs)
        pairs = 4 * model.n_layer * model.d_model * tokens if transformer else 0  # of attention, for each token
        scan = 0 if transformer else 9 * model.n_layer * model.expand * model.d_model * model.d_state
        flops += rows * tokens * (2 * weights + pairs + scan)
    return Work(flops, model.n_layer * len(_stages(trial, task_of(trial.dataset))))


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
    return len(targets) if trial.method in RETURN_CONDITIONED else 1


def num_parameters(trial: TrialSpec, task: Task) -> int:
    """Trainable parameters of all stages (timestep table of the horizon's length; a longer trajectory adds rows)."""
    model = trial.model
    transformer = trial.method in TRANSFORMERS
    backbone = _transformer(model) if transformer else _mamba(model)
    timesteps = task.horizon * model.d_model if transformer else 0
    return sum(
        backbone + timesteps + sum(_linear(size, model.d_model) for size in inputs) + 2 * model.d_model
        + _linear(model.d_model, target)
        for inputs, target in _stages(trial, task)
    )  # fmt: skip


def _stages(trial: TrialSpec, task: Task) -> list[_Stage]:
    observation, action = task.observation_dim, task.action_dim
    low: _Stage = ((observation, observation, action), action)
    inputs_and_target: dict[MethodName, list[_Stage]] = {
        "dt": [((1, observation, action), action)],
        "dm": [((observation, action), action)],
        "dm+r": [((1, observation, action), action)],
        "hdt": [((observation, observation), observation), low],
        "hdm": [((observation, observation), observation), low],
    }
    return inputs_and_target[trial.method]


def _linear(size_in: int, size_out: int, bias: bool = True) -> int:
    return size_in * size_out + (size_out if bias else 0)


def _transformer(model: ModelSpec) -> int:
    width = model.d_model
    attention = _linear(width, 3 * width) + _linear(width, width)
    mlp = _linear(width, 4 * width) + _linear(4 * width, width)
    return model.n_layer * (attention + mlp + 4 * width) + 2 * width


def _mamba(model: ModelSpec) -> int:
    width, inner, rank = model.d_model, model.expand * model.d_model, ceil(model.d_model / 16)
    hidden = ceil(width / 128) * 128
    mixer = (
        _linear(width, 2 * inner, bias=False) + inner * (model.d_conv + 1)
        + _linear(inner, rank + 2 * model.d_state, bias=False) + _linear(rank, inner)
        + inner * (model.d_state + 1) + _linear(inner, width, bias=False)
    )  # fmt: skip
    mlp = _linear(width, 2 * hidden, bias=False) + _linear(hidden, width, bias=False)
    return model.n_layer * (mixer + mlp + 2 * width) + width
