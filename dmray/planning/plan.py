"""From a sweep to its trials: pure, the same on every machine, instant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dmray.errors import SpecError
from dmray.planning.cost import trial_flops
from dmray.specs import DatasetSpec, EvaluationSpec, SweepSpec, TrialSpec, load_sweep
from dmray.tasks import Task, task_of


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep in the order in which they are started; no trial twice."""

    sweep: SweepSpec
    trials: tuple[TrialSpec, ...]

    @property
    def trial_ids(self) -> tuple[str, ...]:
        return tuple(trial.trial_id for trial in self.trials)


def load_plan(path: str | Path, overrides: Iterable[str] = ()) -> Plan:
    """The plan of the sweep file at `path` with `key.path=value` overrides.

    Raises:
        SpecError: a mistake, named by file, place, value and nearest right word.
    """
    sweep = load_sweep(path, overrides)
    try:
        return plan(sweep)
    except SpecError as mistake:
        raise SpecError(f"{path}: {mistake}") from mistake


def plan(sweep: SweepSpec) -> Plan:
    """Expand data sets x seeds x (methods x models) in the sweep's `order`.

    What the sweep leaves to the task (target returns, return scale) is filled in, so that a trial's spec says
    everything.

    Raises:
        SpecError: an unknown data set or task, with its place in the sweep and the nearest right name.
    """
    trials: dict[str, TrialSpec] = {}
    for dataset, task in zip(sweep.datasets, _tasks(sweep), strict=True):
        evaluation = _resolved(sweep.evaluation, task)
        for seed in sweep.seeds:
            for trial in _comparison(sweep, dataset, evaluation, seed):
                trials.setdefault(trial.trial_id, trial)
    return Plan(sweep, ordered(tuple(trials.values()), sweep.order))


def ordered(trials: tuple[TrialSpec, ...], order: str) -> tuple[TrialSpec, ...]:
    """`trials`, which come with all methods of a seed together, in a sweep's `order`; equals stay as they come."""
    if order == "seeds_together":
        groups = {group: place for place, group in enumerate(dict.fromkeys(trial.seed_group_id for trial in trials))}
        datasets = list(dict.fromkeys(trial.dataset.name for trial in trials))
        return tuple(
            sorted(trials, key=lambda trial: (datasets.index(trial.dataset.name), groups[trial.seed_group_id]))
        )
    if order == "cheap_first":
        return tuple(sorted(trials, key=trial_flops))
    return trials


def _tasks(sweep: SweepSpec) -> list[Task]:
    tasks = []
    for place, dataset in enumerate(sweep.datasets):
        try:
            tasks.append(task_of(dataset))
        except SpecError as mistake:
            raise SpecError(f"datasets.{place}: {mistake}") from mistake
    return tasks


def _comparison(sweep: SweepSpec, dataset: DatasetSpec, evaluation: EvaluationSpec, seed: int) -> tuple[TrialSpec, ...]:
    return tuple(
        TrialSpec(
            dataset=dataset, method=method, model=model, seed=seed, training=sweep.training, evaluation=evaluation
        )
        for block in sweep.grid
        for method, model in block.configurations
    )


def _resolved(evaluation: EvaluationSpec, task: Task) -> EvaluationSpec:
    return evaluation.model_copy(
        update={
            "target_returns": evaluation.target_returns or task.target_returns,
            "return_scale": evaluation.return_scale or task.return_scale,
        }
    )
