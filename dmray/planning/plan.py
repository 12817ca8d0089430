"""Expand a sweep into its trials. The result is the same on every machine and does not depend on files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dmray.errors import SpecError
from dmray.methods import METHODS
from dmray.planning.cost import policy_shape, trial_flops
from dmray.specs import DatasetSpec, EvaluationSpec, SweepSpec, TrialSpec, load_sweep
from dmray.tasks import Task, task_of

_MAX_PARAMETERS = 10**10  # 160 GiB with gradients and the optimizer's moments: more than any accelerator has
_MAX_BATCH_TIMESTEPS = 10**8


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep in the order in which they start, without duplicates."""

    sweep: SweepSpec
    trials: tuple[TrialSpec, ...]

    @property
    def trial_ids(self) -> tuple[str, ...]:
        return tuple(trial.trial_id for trial in self.trials)


def load_plan(path: str | Path, overrides: Iterable[str] = ()) -> Plan:
    """Load the sweep file at `path`, apply `key.path=value` overrides, and expand it.

    Raises:
        SpecError: the file or an override is invalid. The message names the file, the field and a valid value.
    """
    sweep = load_sweep(path, overrides)
    try:
        return plan(sweep)
    except SpecError as mistake:
        raise SpecError(f"{path}: {mistake}") from mistake


def plan(sweep: SweepSpec) -> Plan:
    """Expand data sets x seeds x (methods x models) in the sweep's `order`.

    If the sweep does not give target returns or a return scale, those of the task are written into the trials' specs.

    Raises:
        SpecError: an unknown data set or task (the message has its place in the sweep and the most similar name), or a
            network or batch that no machine has the memory for.
    """
    trials: dict[str, TrialSpec] = {}
    _check_sizes(sweep)
    for dataset, task in zip(sweep.datasets, _tasks(sweep), strict=True):
        evaluation = _resolved(sweep.evaluation, task)
        for seed in sweep.seeds:
            for trial in _trials_of_seed(sweep, dataset, evaluation, seed):
                trials.setdefault(trial.trial_id, trial)
    return Plan(sweep, ordered(tuple(trials.values()), sweep.order))


def ordered(trials: tuple[TrialSpec, ...], order: str) -> tuple[TrialSpec, ...]:
    """Sort `trials` by a sweep's `order`. They must come in the order "methods_together". The sort is stable."""
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


def _check_sizes(sweep: SweepSpec) -> None:
    """Refuse a typing mistake in a size, which would otherwise end in a worker without memory."""
    batch, task = sweep.training.batch_size, _tasks(sweep)[0]
    for method, model in dict.fromkeys(entry for block in sweep.grid for entry in block.configurations):
        size = f"{method} with d_model {model.d_model}, n_layer {model.n_layer}, context_length {model.context_length}"
        if batch * model.context_length > _MAX_BATCH_TIMESTEPS:
            raise SpecError(
                f"training.batch_size {batch:,}: a batch of {size} has {batch * model.context_length:,} timesteps, "
                f"more than {_MAX_BATCH_TIMESTEPS:,}"
            )
        parameters = METHODS[method].num_parameters(model, policy_shape(task))
        if parameters > _MAX_PARAMETERS:
            raise SpecError(
                f"grid: {size} has {parameters:,} parameters and needs {parameters * 16 / 2**30:,.0f} GiB to train; "
                "give smaller sizes"
            )


def _trials_of_seed(
    sweep: SweepSpec, dataset: DatasetSpec, evaluation: EvaluationSpec, seed: int
) -> tuple[TrialSpec, ...]:
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
