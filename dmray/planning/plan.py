"""Expand a sweep into its trials. The result is the same on every machine and does not depend on files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest

from dmray.errors import SpecError
from dmray.methods import METHODS
from dmray.planning.cost import policy_shape, trial_flops
from dmray.planning.search import num_trials, search_trials
from dmray.planning.search_space import OPEN, OutcomeOf, groups_of, num_settings
from dmray.planning.settings import Cell, Setting, cells_of
from dmray.planning.successive_halving import rungs_of
from dmray.specs import MAX_TRIALS, EarlyStoppingSpec, SearchSpec, SweepSpec, TrialSpec
from dmray.tasks import Task, task_of

_MAX_PARAMETERS = 10**10  # 160 GiB with gradients and the optimizer's moments: more than any accelerator has
_MAX_BATCH_TIMESTEPS = 10**8


@dataclass(frozen=True)
class SearchPlan:
    """What is known of a search beside its trials.

    `selection_trials`, `report_trials`: how many there will be in all. `over`: the ids of selection trials of rounds
    that have ended; what failed there counts as failed. `without_choice`: the groups of whose settings none finished.
    """

    selection_trials: int
    report_trials: int
    over: frozenset[str]
    without_choice: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep in the order in which they start, without duplicates.

    With a search these are the trials so far: of the rounds whose settings are known, then of the report. `search` is
    None then too for the plan of a manifest.
    """

    sweep: SweepSpec
    trials: tuple[TrialSpec, ...]
    search: SearchPlan | None = None

    @property
    def trial_ids(self) -> tuple[str, ...]:
        return tuple(trial.trial_id for trial in self.trials)


def plan(sweep: SweepSpec, outcome_of: OutcomeOf = lambda trial: OPEN) -> Plan:
    """Expand data sets x seeds x (methods x models) x values of fields, in the sweep's `order`.

    With a search: its trials so far, which follow from the outcomes of those that have ended; without outcomes the
    first round.

    If the sweep does not give target returns or a return scale, those of the task are written into the trials' specs.

    Raises:
        SpecError: an unknown data set or task (the message has its place in the sweep and the most similar name),
            values that do not fit each other, too many trials, early stopping that can stop none, or a network or batch
            that no machine has the memory for.
    """
    cells = cells_of(sweep, _tasks(sweep))
    if sweep.search is not None:
        return _search_plan(sweep, sweep.search, cells, outcome_of)
    _check_number(sweep, cells)
    trials: dict[str, TrialSpec] = {}
    for _, of_dataset in groupby(cells, key=lambda cell: cell.dataset.name):
        settings = list(_methods_together(list(of_dataset)))
        for seed in sweep.seeds:
            for setting in settings:
                trial = setting.trial(seed)
                trials.setdefault(trial.trial_id, trial)
    planned = tuple(trials.values())
    _check_sizes(planned)
    _check_dtypes(sweep, planned)
    if sweep.early_stopping is not None:
        _check_early_stopping(sweep.early_stopping, planned)
    return Plan(sweep, ordered(planned, sweep.order))


def _search_plan(sweep: SweepSpec, search: SearchSpec, cells: Sequence[Cell], outcome_of: OutcomeOf) -> Plan:
    probes = tuple(setting.trial(0) for cell in cells for setting in cell.probes())
    _check_sizes(probes)
    _check_dtypes(sweep, probes)
    groups = groups_of(search, cells)
    selection, report = num_trials(sweep, search, groups)
    if selection + report > MAX_TRIALS:
        raise SpecError(
            f"search: {selection:,} selection trials and {report:,} of the report; a sweep has at most {MAX_TRIALS:,}"
        )
    searched = search_trials(sweep, search, groups, outcome_of)
    if sweep.early_stopping is not None:
        settings = max(num_settings(search, group) for group in groups)
        _check_early_stopping(sweep.early_stopping, searched.trials, settings)
    known = SearchPlan(selection, report, searched.over, tuple(map(str, searched.without_choice)))
    return Plan(sweep, searched.trials, known)


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


def _check_number(sweep: SweepSpec, cells: Sequence[Cell]) -> None:
    """Refuse too many trials before they are made."""
    number = sum(cell.size for cell in cells) * len(sweep.seeds)
    if number > MAX_TRIALS:
        several = dict.fromkeys(
            f"{cell.places[field]} ({len(domain.values):,} values)"
            for cell in cells
            for field, domain in cell.domains.items()
        )
        raise SpecError(f"all values of {', '.join(several)} are {number:,} trials; a sweep has at most {MAX_TRIALS:,}")


def _methods_together(cells: Sequence[Cell]) -> Iterator[Setting]:
    """The settings of a data set: for each entry of `models` the first of every method, then the second, and so on."""
    for _, of_entry in groupby(cells, key=lambda cell: (cell.block, cell.entry, cell.preset)):
        for row in zip_longest(*(cell.settings() for cell in of_entry)):
            yield from (setting for setting in row if setting is not None)


def _check_sizes(trials: Sequence[TrialSpec]) -> None:
    """Refuse a typing mistake in a size, which would otherwise end in a worker without memory."""
    checked = set()
    for trial in trials:
        method, model, batch = trial.method, trial.model, trial.training.batch_size
        if (method, model, batch) in checked:
            continue
        checked.add((method, model, batch))
        size = f"{method} with d_model {model.d_model}, n_layer {model.n_layer}, context_length {model.context_length}"
        if batch * model.context_length > _MAX_BATCH_TIMESTEPS:
            raise SpecError(
                f"training.batch_size {batch:,}: a batch of {size} has {batch * model.context_length:,} timesteps, "
                f"more than {_MAX_BATCH_TIMESTEPS:,}"
            )
        parameters = METHODS[method].num_parameters(model, policy_shape(task_of(trial.dataset)))
        if parameters > _MAX_PARAMETERS:
            raise SpecError(
                f"grid: {size} has {parameters:,} parameters and needs {parameters * 16 / 2**30:z,.0f} GiB to train; "
                "give smaller sizes"
            )


def _check_dtypes(sweep: SweepSpec, trials: Sequence[TrialSpec]) -> None:
    """Refuse a precision that only GPUs have where no trial gets one."""
    if sweep.resources.trial_device == "cpu" and any(trial.training.dtype == "tf32" for trial in trials):
        raise SpecError(
            "training.dtype tf32: the products of a CPU are float32; give float32, or the trials a share of a GPU "
            "(resources.gpus_per_trial)"
        )


def _check_early_stopping(rule: EarlyStoppingSpec, trials: Sequence[TrialSpec], at_least: int = 0) -> None:
    """Refuse a rule that can stop no trial; `at_least` so many will compete, whatever `trials` says."""
    if not any(rungs_of(rule, trial) for trial in trials):
        longest = max(trials, key=lambda trial: trial.training.steps)
        raise SpecError(
            f"early_stopping.grace_steps {rule.grace_steps}: there is no evaluation between this step and the end "
            f"(training.steps {longest.training.steps}, evaluation.every_steps {longest.evaluation.every_steps})"
        )
    compete = max(at_least, *Counter(rule.competitors_of(trial) for trial in trials).values())
    if compete < rule.reduction_factor:
        raise SpecError(
            f"early_stopping.reduction_factor {rule.reduction_factor}: at most {compete} trials of a seed compete "
            f"within a {rule.within}, so none could be stopped; add models"
            + (", or set early_stopping.within: dataset" if rule.within == "method" else "")
        )
