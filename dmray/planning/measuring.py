"""Measure the speed of this machine: training steps, decode modes and simulators. Takes about a minute.

Other load on the machine is noticed: from the load average before, and from the CPU time that the measurements got.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime

import numpy as np
import torch

from dmray.datasets import Episodes, WindowSampler
from dmray.errors import BusyMachineError, EngineError, MissingPackageError
from dmray.methods import METHODS
from dmray.planning.calibration import Calibration, Device, PackedPoint, Point, busy_reason, hardware_name
from dmray.planning.cost import decode_states, decode_work, training_work
from dmray.policies import PolicyShape, SequencePolicy, policy_recipe
from dmray.processes import usable_cpus
from dmray.rollout import EvaluationRequest, cohorts, make_engine, run_cohort
from dmray.specs import DatasetSpec, EvaluationSpec, TrainingSpec, TrialSpec
from dmray.specs.decode import parse_decode
from dmray.tasks import FAMILIES, TASKS, Task
from dmray.training import Pack, Trainer

SIZES: tuple[dict[str, int], ...] = ({"d_model": 64, "n_layer": 2, "context_length": 5}, {})  # {}: the defaults
DECODES = ("window", "stream:2", "recurrent")
_TASK, _ROWS, _EPISODE_STEPS = "hopper", 20, 1000
_ROLLOUTS = 3
_SEATS = (4, 16)  # trials of a pack
_STEADY_TASK = TASKS["maze2d-open"]  # its episodes never end before the horizon
Print = Callable[[str], None]


def calibrate(show: Print, budget_s: float = 3.0, force: bool = False) -> Calibration:
    """Measure this machine, about `budget_s` seconds for each number. `show` is called with a line for each result.

    Simulators that are not installed are reported to `show` and are not in the calibration.

    Raises:
        BusyMachineError: other processes used the machine, before or meanwhile. With `force` the calibration says so.
    """
    load, all_cpus = os.getloadavg()[0], os.cpu_count() or 1  # of the whole machine, also in a container
    _refuse_busy(busy_reason(load, all_cpus), force)
    threads = torch.get_num_threads()
    backbones = list(dict.fromkeys(METHODS[name].backbone.name for name in METHODS))
    torch.set_num_threads(1)  # as in trials and actors
    devices: tuple[Device, ...] = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    measure = _Measure(budget_s, show)
    try:
        training = {
            device: {backbone: measure.training(backbone, device) for backbone in backbones} for device in devices
        }
        alone = training.get("cuda", {}).get("mamba")
        packed = measure.packs(alone[-1].seconds) if alone else ()
        decisions = {device: measure.decisions(backbones, device) for device in devices}
        env_step_s = measure.engines()
    finally:
        torch.set_num_threads(threads)
    busy = busy_reason(load, all_cpus, measure.clock.cpu_share)
    _refuse_busy(busy, force)
    return Calibration(
        hardware=hardware_name(),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        cpus=usable_cpus(),
        gpus=torch.cuda.device_count(),
        training=training,
        decisions=decisions,
        env_step_s=env_step_s,
        packed=packed,
        busy=busy,
    )


def _refuse_busy(reason: str | None, force: bool) -> None:
    if reason is not None and not force:
        raise BusyMachineError(
            f"this machine is busy: {reason}, so that plans would be too slow; end the other processes and wait a "
            "minute, or measure anyway with --force, and the calibration will say so"
        )


class _Clock:
    """Sums the wall time and the CPU time of the sections that run on the CPU."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    @property
    def cpu_share(self) -> float | None:
        return self.cpu_s / self.wall_s if self.wall_s else None

    @contextmanager
    def running(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall_s += time.perf_counter() - wall
            self.cpu_s += time.process_time() - cpu


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


class _Measure:
    """The measurements of one calibration."""

    def __init__(self, budget_s: float, show: Print) -> None:
        self._budget_s, self._show, self.clock = budget_s, show, _Clock()

    def training(self, backbone: str, device: Device) -> tuple[Point, ...]:
        points = []
        for size in SIZES:
            trial = reference_trial(backbone, size)
            trainer, work = _trainer(trial, device), training_work(trial)
            with self._timed(device):
                seconds = seconds_each(trainer.step, device, self._budget_s)
            what = f"{_name(trial)} batch {trial.training.batch_size} on {device}"
            self._show(f"{what}: {1 / seconds:z.1f} training steps/s")
            points.append(Point(what=what, flops=work.flops, layers=work.layers, seconds=seconds))
        return tuple(points)

    def packs(self, alone_s: float, device: Device = "cuda") -> tuple[PackedPoint, ...]:
        """Trials of the largest size that train as one network. `alone_s`: seconds of a step of one of them alone."""
        trial = reference_trial("mamba", SIZES[-1])
        sampler, weights = _sampler(trial, device), _policy(trial, TASKS[_TASK]).state_dict()
        points = []
        for seats in _SEATS:
            pack = Pack(_policy(trial, TASKS[_TASK]), sampler, trial.training, seats, device)
            for seed in range(seats):
                pack.join(seed, trial.training.learning_rate, weights)
            seconds = seconds_each(lambda pack=pack: pack.advance(pack.occupied, 10), device, self._budget_s) / 10  # type: ignore[misc]
            rate, compiled = alone_s * seats / seconds, "" if pack.compiled else ", not compiled"
            what = f"{_name(trial)} batch {trial.training.batch_size}, a pack of {seats} on {device}{compiled}"
            self._show(f"{what}: {seats / seconds:z.1f} training steps/s of all together, {rate:z.2g} times one alone")
            points.append(PackedPoint(what=what, trials=seats, rate=rate))
        return tuple(points)

    def decisions(self, backbones: Sequence[str], device: Device) -> dict[str, dict[str, tuple[Point, ...]]]:
        """The seconds of an action of a cohort, by decode mode and backbone."""
        env_step_s = _env_step_s(_STEADY_TASK, self._budget_s / 4)
        return {
            parse_decode(decode).mode.name: {
                backbone: tuple(self._decision(backbone, size, decode, device, env_step_s) for size in SIZES)
                for backbone in backbones
            }
            for decode in DECODES
        }

    def _decision(self, backbone: str, size: dict[str, int], decode: str, device: Device, env_step_s: float) -> Point:
        """The time of a step of an evaluation without the simulator's time."""
        trial = reference_trial(backbone, size)
        policy = _policy(trial, _STEADY_TASK).eval().to(device)
        targets = (50.0,) if policy.takes_target else (None,)
        request = EvaluationRequest(_STEADY_TASK, _ROWS, 0, decode, targets, _ROWS)
        cohort, step_s = cohorts(request)[0], math.inf
        for _ in range(_ROLLOUTS):  # the first one compiles
            with self._timed(device):
                started = time.perf_counter()
                episodes = run_cohort(policy, request, cohort)
                step_s = min(step_s, (time.perf_counter() - started) / max(each.length for each in episodes))
        seconds = step_s - _ROWS * env_step_s
        if seconds <= 0.0:  # others disturbed the simulators' measurement: rather too long than nothing
            seconds = step_s
        what = f"{_name(trial)} {decode}, {_ROWS} episodes on {device}"
        self._show(f"{what}: {_ROWS / seconds:z.0f} decisions/s")
        work = decode_work(trial, _ROWS, decode_states(decode))
        return Point(what=what, flops=work.flops, layers=work.layers, seconds=seconds)

    def engines(self) -> dict[str, float]:
        """Seconds of one environment step of each engine, measured in one of its tasks."""
        measured: dict[str, Task] = {}
        for family in FAMILIES.values():
            measured.setdefault(family.engine, family.task_to_calibrate)
        seconds: dict[str, float] = {}
        for engine, task in measured.items():
            try:
                with self._timed("cpu"):
                    seconds[engine] = _env_step_s(task, self._budget_s)
            except (EngineError, MissingPackageError, ImportError) as problem:
                self._show(f"{engine}: not measured: {problem}")
            else:
                self._show(f"{engine} ({task.name}): {1 / seconds[engine]:z.0f} env steps/s on one CPU")
        return seconds

    def _timed(self, device: Device) -> AbstractContextManager[None]:
        """A section that counts for the share of CPU time: not on a GPU, where a process may sleep while it waits."""
        return self.clock.running() if device == "cpu" else nullcontext()


def _name(trial: TrialSpec) -> str:
    return f"{trial.method} {trial.model.d_model}x{trial.model.n_layer} K{trial.model.context_length}"


def _trainer(trial: TrialSpec, device: Device) -> Trainer:
    policy = _policy(trial, TASKS[_TASK]).to(device)
    return Trainer(policy, _sampler(trial, device), trial.training, trial.seed, device)


def _sampler(trial: TrialSpec, device: Device) -> WindowSampler:
    """Draws from random episodes of Hopper's dimensions."""
    draw, task = np.random.default_rng(0), TASKS[_TASK]
    episodes = Episodes(
        draw.normal(size=(10 * _EPISODE_STEPS, task.observation_dim)).astype(np.float32),
        draw.uniform(-1, 1, (10 * _EPISODE_STEPS, task.action_dim)).astype(np.float32),
        draw.normal(size=10 * _EPISODE_STEPS).astype(np.float32),
        np.arange(11) * _EPISODE_STEPS,
    )
    return WindowSampler(
        episodes,
        _policy(trial, task).tokens,
        context_length=trial.model.context_length,
        batch_size=trial.training.batch_size,
        device=device,
    )


def _policy(trial: TrialSpec, task: Task) -> SequencePolicy:
    shape = PolicyShape(task.observation_dim, task.action_dim, task.action_limit, task.horizon)
    return SequencePolicy(policy_recipe(trial, shape))


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
