"""Measure the speed of this machine: training steps, window decoding and simulators. Takes about a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import torch

from dmray.datasets import Episodes, WindowSampler
from dmray.errors import EngineError, MissingPackageError
from dmray.methods import METHODS
from dmray.planning.calibration import Calibration, Device, Point, hardware_name
from dmray.planning.cost import forward_work, training_work
from dmray.policies import PolicyShape, SequencePolicy, policy_recipe
from dmray.rollout import EvaluationRequest, cohorts, make_engine, run_cohort
from dmray.specs import DatasetSpec, EvaluationSpec, TrainingSpec, TrialSpec
from dmray.tasks import FAMILIES, TASKS, Task
from dmray.training import Trainer

SIZES: tuple[dict[str, int], ...] = ({"d_model": 64, "n_layer": 2, "context_length": 5}, {})  # {}: the defaults
_TASK, _ROWS, _EPISODE_STEPS = "hopper", 20, 1000
Print = Callable[[str], None]


def calibrate(show: Print, budget_s: float = 3.0) -> Calibration:
    """Measure this machine, about `budget_s` seconds for each number. `show` is called with a line for each result.

    Simulators that are not installed are reported to `show` and are not in the calibration.
    """
    threads = torch.get_num_threads()
    backbones = list(dict.fromkeys(METHODS[name].backbone.name for name in METHODS))
    torch.set_num_threads(1)  # as in trials and actors
    devices: tuple[Device, ...] = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    try:
        training = {
            device: {backbone: _training(backbone, device, budget_s, show) for backbone in backbones}
            for device in devices
        }
        decisions = {backbone: _decisions(backbone, budget_s, show) for backbone in backbones}
        env_step_s = _engines(budget_s, show)
    finally:
        torch.set_num_threads(threads)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return Calibration(
        hardware=hardware_name(), made=made, training=training, decisions=decisions, env_step_s=env_step_s
    )


def seconds_each(action: Callable[[], object], device: Device, budget_s: float) -> float:
    """The shortest time of one call of `action` after two warm-ups; stops after about `budget_s`.

    The minimum, because other processes on the machine can only make a call slower.
    """
    times: list[float] = []
    for run in range(1000):
        started = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        if run >= 2:
            times.append(time.perf_counter() - started)
        if len(times) >= 3 and sum(times) > budget_s:
            break
    return min(times)


def reference_trial(backbone: str, size: dict[str, int]) -> TrialSpec:
    """A trial of the first method with this backbone, with Hopper's dimensions and the paper's batch size."""
    method = next(name for name in METHODS if METHODS[name].backbone.name == backbone)
    return TrialSpec(
        dataset=DatasetSpec(name="hopper-medium-v2"),
        method=method,
        model=METHODS[method].config.model_validate(size),
        seed=0,
        training=TrainingSpec(),
        evaluation=EvaluationSpec(return_scale=1000.0, target_returns=(3600.0,), cohort_size=_ROWS),
    )


def _training(backbone: str, device: Device, budget_s: float, show: Print) -> tuple[Point, ...]:
    points = []
    for size in SIZES:
        trial = reference_trial(backbone, size)
        model = trial.model
        trainer, work = _trainer(trial, device), training_work(trial)
        seconds = seconds_each(trainer.step, device, budget_s)
        what = f"{trial.method} {model.d_model}x{model.n_layer} K{model.context_length} batch 16 on {device}"
        show(f"{what}: {1 / seconds:.1f} training steps/s")
        points.append(Point(what=what, flops=work.flops, layers=work.layers, seconds=seconds))
    return tuple(points)


def _trainer(trial: TrialSpec, device: Device) -> Trainer:
    draw, task = np.random.default_rng(0), TASKS[_TASK]
    episodes = Episodes(
        draw.normal(size=(10 * _EPISODE_STEPS, task.observation_dim)).astype(np.float32),
        draw.uniform(-1, 1, (10 * _EPISODE_STEPS, task.action_dim)).astype(np.float32),
        draw.normal(size=10 * _EPISODE_STEPS).astype(np.float32),
        np.arange(11) * _EPISODE_STEPS,
    )
    policy = _policy(trial, task).to(device)
    sampler = WindowSampler(
        episodes,
        policy.tokens,
        context_length=trial.model.context_length,
        batch_size=trial.training.batch_size,
        device=device,
    )
    return Trainer(policy, sampler, trial.training, trial.seed, device)


def _policy(trial: TrialSpec, task: Task) -> SequencePolicy:
    shape = PolicyShape(task.observation_dim, task.action_dim, task.action_limit, task.horizon)
    return SequencePolicy(policy_recipe(trial, shape))


def _decisions(backbone: str, budget_s: float, show: Print) -> tuple[Point, ...]:
    """The time of window decoding in an evaluation without the simulator's time.

    The task is maze2d-open, because its episodes never end before the horizon.
    """
    task = TASKS["maze2d-open"]
    physics, points = _env_step_s(task, budget_s / 4), []
    for size in SIZES:
        trial = reference_trial(backbone, size)
        model = trial.model
        policy, work = _policy(trial, task).eval(), forward_work(trial, _ROWS)
        targets = (50.0,) if policy.takes_target else (None,)
        request = EvaluationRequest(task, _ROWS, 0, "window", targets, _ROWS)
        started = time.perf_counter()
        episodes = run_cohort(policy, request, cohorts(request)[0])
        step_s = (time.perf_counter() - started) / max(episode.length for episode in episodes)
        seconds = max(step_s - _ROWS * physics, 1e-6)
        what = f"{trial.method} {model.d_model}x{model.n_layer} K{model.context_length} window, {_ROWS} episodes"
        show(f"{what}: {_ROWS / seconds:.0f} decisions/s")
        points.append(Point(what=what, flops=work.flops, layers=work.layers, seconds=seconds))
    return tuple(points)


def _engines(budget_s: float, show: Print) -> dict[str, float]:
    """Seconds of one environment step of each engine, measured in one of its tasks."""
    measured: dict[str, Task] = {}
    for family in FAMILIES.values():
        measured.setdefault(family.engine, family.task_to_calibrate)
    seconds: dict[str, float] = {}
    for engine, task in measured.items():
        try:
            seconds[engine] = _env_step_s(task, budget_s)
        except (EngineError, MissingPackageError, ImportError) as problem:
            show(f"{engine}: not measured: {problem}")
        else:
            show(f"{engine} ({task.name}): {1 / seconds[engine]:.0f} env steps/s on one CPU")
    return seconds


def _env_step_s(task: Task, budget_s: float, num_episodes: int = 10) -> float:
    engine, draw = make_engine(task, num_episodes), np.random.default_rng(0)
    steps, spent = 0, 0.0
    try:
        while spent < budget_s:
            engine.reset(list(range(num_episodes)))
            live = np.arange(num_episodes)
            while len(live) and spent < budget_s:
                actions = draw.uniform(-task.action_limit, task.action_limit, (len(live), task.action_dim))
                started = time.perf_counter()
                step = engine.step(actions.astype(np.float32), live)
                spent, steps = spent + time.perf_counter() - started, steps + len(live)
                live = live[~(step.terminated | step.truncated)]
    finally:
        engine.close()
    return spent / steps
