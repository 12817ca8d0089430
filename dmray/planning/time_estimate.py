"""Estimate how many hours trials take: their cost, and the measured speed of a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmray.errors import SpecError
from dmray.planning.calibration import Calibration, backbone_of, seconds_of
from dmray.planning.cost import forward_work, training_work, trial_cost
from dmray.specs import ResourcesSpec, TrialSpec
from dmray.tasks import task_of


@dataclass(frozen=True)
class TimeEstimate:
    """Hours. `trial_hours`: training of all trials, summed. `gpu_hours`: `trial_hours` times the GPUs per trial.

    `wall_hours` does not include the start of each trial and work that is repeated after errors.
    """

    trial_hours: float
    gpu_hours: float
    evaluation_core_hours: float
    wall_hours: float


def estimate_time(
    trials: Sequence[TrialSpec], resources: ResourcesSpec, calibration: Calibration, concurrent: int
) -> TimeEstimate:
    """Estimate the hours of `trials`, of which `concurrent` run at the same time.

    `concurrent` 0: the trials run one after the other in one process, which also runs their evaluations.

    Raises:
        SpecError: the calibration has no measurement of a backbone or simulator. The message says which.
    """
    _check(trials, resources, calibration)
    training = [training_hours(trial, calibration, resources) for trial in trials]
    evaluation = sum(evaluation_hours(trial, calibration) for trial in trials)
    total = sum(training)
    if concurrent:
        by_training = max(max(training, default=0.0), total / concurrent)
        wall = max(by_training, evaluation / resources.evaluation_actors)
    else:
        wall = total + evaluation
    return TimeEstimate(total, total * resources.gpus_per_trial, evaluation, wall)


def _check(trials: Sequence[TrialSpec], resources: ResourcesSpec, calibration: Calibration) -> None:
    engines = {task_of(trial.dataset).engine for trial in trials}
    lacking = sorted(engines - set(calibration.env_step_s))
    if resources.trial_device not in calibration.training:
        lacking.append(f"training on {resources.trial_device}")
    else:
        measured = set(calibration.training[resources.trial_device]) & set(calibration.decisions)
        lacking += sorted(f"backbone {name}" for name in {backbone_of(trial) for trial in trials} - measured)
    if lacking:
        raise SpecError(
            f"the calibration of {calibration.hardware} has no measurement of {', '.join(lacking)}; "
            "run python -m dmray.doctor --calibrate on a machine that has it"
        )


def training_hours(trial: TrialSpec, calibration: Calibration, resources: ResourcesSpec) -> float:
    """Hours of the trial's training steps."""
    points = calibration.training[resources.trial_device][backbone_of(trial)]
    return trial.training.steps * seconds_of(points, training_work(trial)) / 3600


def evaluation_hours(trial: TrialSpec, calibration: Calibration) -> float:
    """Core-hours of all evaluations, if every episode runs to its horizon in decode mode `window`, the slowest mode."""
    rows = min(trial.evaluation.cohort_size, trial.evaluation.episodes)
    decision_s = seconds_of(calibration.decisions[backbone_of(trial)], forward_work(trial, rows)) / rows
    env_steps = trial_cost(trial, 1).env_steps
    return env_steps * (decision_s + calibration.env_step_s[task_of(trial.dataset).engine]) / 3600
