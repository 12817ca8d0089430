"""What a plan will take in hours: its cost times the measured rates of a calibration. No calibration, no bill."""

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
    """Hours. `trial_hours` is training, of all trials; GPU-hours are their shares of GPUs; `wall_hours` leaves out the
    start of each trial, and anything lost."""

    trial_hours: float
    gpu_hours: float
    evaluation_core_hours: float
    wall_hours: float


def estimate_time(
    trials: Sequence[TrialSpec], resources: ResourcesSpec, calibration: Calibration, concurrent: int
) -> TimeEstimate:
    """The bill of `trials`; `concurrent` 0: one after the other in one process, evaluations between the training.

    Raises:
        SpecError: the calibration lacks a rate; the message says which, and how to measure it.
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
            f"no rates of {', '.join(lacking)} in the calibration of {calibration.hardware}; "
            "python -m dmray.doctor --calibrate, where they are"
        )


def training_hours(trial: TrialSpec, calibration: Calibration, resources: ResourcesSpec) -> float:
    points = calibration.training[resources.trial_device][backbone_of(trial)]
    return trial.training.steps * seconds_of(points, training_work(trial)) / 3600


def evaluation_hours(trial: TrialSpec, calibration: Calibration) -> float:
    """Every episode to its horizon, in cohorts, decoded as in mode `window` (the other modes are cheaper)."""
    rows = min(trial.evaluation.cohort_size, trial.evaluation.episodes)
    decision_s = seconds_of(calibration.decisions[backbone_of(trial)], forward_work(trial, rows)) / rows
    env_steps = trial_cost(trial, 1).env_steps
    return env_steps * (decision_s + calibration.env_step_s[task_of(trial.dataset).engine]) / 3600
