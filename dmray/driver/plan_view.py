"""A plan for a terminal: what `--plan` prints, and what a notebook shows of `dmray.plan_sweep`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group

from dmray.methods import METHODS
from dmray.models import BackboneConfig
from dmray.planning.calibration import Calibration
from dmray.planning.cost import Cost, total_cost
from dmray.planning.needed_files import NeededFile
from dmray.planning.plan import Plan
from dmray.planning.successive_halving import rungs_of
from dmray.planning.time_estimate import Capacity, Change, TimeEstimate, duration_text
from dmray.progress.trial_status import DONE, TrialStatus
from dmray.space import size_text
from dmray.specs import ResourcesSpec, SweepSpec, TrialSpec, shown_value, unused_in_training
from dmray.terminal import FittingTable

_OF_THE_TASK = ("target_returns", "return_scale")  # which differ between tasks anyway
_MOST_VALUES = 12  # of one field, by name
_ORDERS = {
    "methods_together": "in this order; on each data set, seed by seed",
    "seeds_together": "in this order; on each data set, all seeds of a method together",
    "cheap_first": "those with the least work first",
}


def render_plan(plan: Plan, states: Mapping[str, TrialStatus] | None = None) -> Group:
    """Trials by data set in the order of their start, what they cost at most, and, given `states`, what is done."""
    table = FittingTable(box=None, pad_edge=False)
    table.add_column("data set", vertical="bottom", no_wrap=True)
    for name in ("trials", "training\nsteps", "env steps\nat most", "disk", *(["done"] if states else [])):
        table.add_column(name, justify="right", vertical="bottom", no_wrap=True)
    every = (plan.sweep.tracking.log_every_steps, plan.sweep.faults.keep_every_steps)
    for dataset in dict.fromkeys(trial.dataset.name for trial in plan.trials):
        trials = [trial for trial in plan.trials if trial.dataset.name == dataset]
        done = [f"{sum(states[trial.trial_id] in DONE for trial in trials)}/{len(trials)}"] if states else []
        table.add_row(dataset, str(len(trials)), *_cost(total_cost(trials, *every)), *done)
    steps, env_steps, disk = _cost(total_cost(plan.trials, *every))
    counts = Counter(states.values() if states else ())
    by_state = [f"{counts[state]} {state.label}" for state in TrialStatus if counts[state]]
    return Group(
        f"sweep '{plan.sweep.name}': {counted(len(plan.trials), 'trial')}",
        f"{_ORDERS[plan.sweep.order]}:",
        *_comparison(plan.trials),
        *_search(plan),
        *_early_stopping(plan),
        "",
        table,
        "",
        f"cost: {steps} training steps, at most {env_steps} env steps, about {disk} on disk",
        *([f"trials: {', '.join(by_state)}"] if states else []),
    )


def counted(number: int, what: str) -> str:
    """ "1 trial", "2 trials"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Price:
    """What one machine costs in an hour, and how many machines there are."""

    per_hour: float
    machines: int


def render_time(
    estimate: TimeEstimate, sweep: SweepSpec, capacity: Capacity, calibration: Calibration, price: Price | None = None
) -> str:
    """How long the sweep takes, what it waits for, and what it costs."""
    has_range = estimate.least_wall_s < estimate.wall_s
    at_most = "at most" if has_range or sweep.early_stopping is not None else "about"
    limit = f"the {capacity.cpus:g} CPUs" if estimate.limit == "the CPUs" else estimate.limit
    gpus = f", {duration_text(estimate.gpu_s)} of one GPU" if estimate.gpu_s else ""
    lines = [
        f"time: {at_most} {duration_text(estimate.wall_s)}, limited by {limit}",
        f"  training     {duration_text(estimate.training_s)} of one trial after the other{gpus}",
        *_at_once(estimate, capacity),
        *_on_a_gpu(estimate, sweep.resources, capacity, calibration),
        f"  evaluation   at most {duration_text(estimate.evaluation_s)} of one process",
        *_by_actors(estimate, sweep.resources),
    ]
    if has_range:
        least = duration_text(estimate.least_wall_s)
        lines.append(f"  at least {least}, if no quick evaluation is repeated with all episodes")
    if sweep.early_stopping is not None:
        lines.append("  without the time that early stopping saves")
    if price is not None:
        lines.append(_cost_of_machines(estimate, price))
    start = "" if estimate.in_one_process else "starting Ray and the trials, "
    lines.append(f"  not included: {start}downloading or recording data, the report")
    lines.append(f"  (to a factor of two, from measurements of {calibration.hardware}, {calibration.made[:10]})")
    if calibration.busy is not None:
        lines.append(f"  measured on a busy machine, so the time may be too long: {calibration.busy}")
    if calibration.stand_in is not None:
        lines.append(f"  what was measured there: {calibration.stand_in}")
    return "\n".join(lines)


def _at_once(estimate: TimeEstimate, capacity: Capacity) -> list[str]:
    if estimate.in_one_process:
        return []
    together = max(estimate.by_limit["training"], estimate.by_limit["the longest trial"])
    return [f"               {duration_text(together)} with {capacity.trials} at a time"]


def _on_a_gpu(
    estimate: TimeEstimate, resources: ResourcesSpec, capacity: Capacity, calibration: Calibration
) -> list[str]:
    """What is assumed of trials that share a GPU, and whether GPUs stay idle."""
    trials = capacity.trials_on_a_gpu
    if trials == 1:
        return []
    if resources.trials_per_pack > 1 and not calibration.packed:
        text = f"{trials} trials on a GPU: how fast packs are was not measured, so as if they took turns"
    elif estimate.gpu_speed == 1.0:
        text = f"{trials} trials on a GPU take turns: no more steps than one alone"
    else:
        text = f"{trials} trials on a GPU: packed ones {estimate.gpu_speed:.2g} times the steps of one alone, others 1"
    lines = [f"               {text}"]
    if capacity.at_work < capacity.gpus:
        lines.append(
            f"               they fill {capacity.at_work} of {capacity.gpus} GPUs: more with a larger gpus_per_trial"
        )
    return lines


def _by_actors(estimate: TimeEstimate, resources: ResourcesSpec) -> list[str]:
    if estimate.in_one_process:
        return []
    actors = counted(resources.evaluation_actors, "evaluation actor")
    return [f"               {duration_text(estimate.by_limit['evaluation'])} with {actors}"]


def _cost_of_machines(estimate: TimeEstimate, price: Price) -> str:
    hours = estimate.wall_s / 3600
    machines = counted(price.machines, "machine")
    total = _money(hours * price.machines * price.per_hour)
    return f"  price        {total} for {machines} at {price.per_hour:g} an hour each"


def _money(amount: float) -> str:
    """Two significant digits, as the time it is computed from."""
    return f"{float(f'{amount:.2g}'):z,.0f}" if amount >= 10 else f"{amount:z.2f}"


def render_changes(now: TimeEstimate, changes: Sequence[Change]) -> str:
    """What would shorten the sweep, one change a line; empty if there is nothing."""
    if not changes:
        return ""
    longest = "evaluation" if now.waits_for_evaluation else "training"
    lines = [f"{longest} takes longest; the whole sweep would take, with {'one of' if len(changes) > 1 else 'this'}:"]
    for change in changes:
        at_least = "at least " if change.estimate.least_wall_s < change.estimate.wall_s else ""
        options = f" \\\n  {'':<22} -o ".join(change.what.split(" -o "))
        lines.append(f"  {at_least + duration_text(change.estimate.least_wall_s):<22} -o {options}")
        if change.more_cpus:
            lines.append(f"  {'':<22} (needs {change.more_cpus:,} CPUs more)")
        if change.other_protocol:
            lines.append(f"  {'':<22} (another protocol: not comparable with 'window')")
    return "\n".join(lines)


def render_needed_files(files: Sequence[NeededFile], folder: str) -> str:
    """Files that are not here, where they come from, and how much is downloaded."""
    here = [file for file in files if file.state == "here"]
    is_or_are = "is" if 1 in (len(here), len(files)) else "are"
    lines = [f"data: {len(here)} of {counted(len(files), 'file')} {is_or_are} here"]
    downloads = [file for file in files if file.state == "download"]
    if downloads:
        width = max(len(file.dataset) for file in downloads)
        known = [file.size_bytes for file in downloads if file.size_bytes is not None]
        unknown = f" and {len(downloads) - len(known)} of unknown size" if len(known) < len(downloads) else ""
        size = f"{len(known)} with {size_text(sum(known))}{unknown}" if known else "sizes unknown"
        lines.append(f"  {len(downloads)} to download ({size}) to {folder}")
        for source in dict.fromkeys(_folder_of(file) for file in downloads):
            lines.append(f"  from {source}")
            lines += [_line(file, width) for file in downloads if _folder_of(file) == source]
    for state, what in (("record", "to record"), ("missing", "MISSING: the sweep does not start")):
        if found := [file for file in files if file.state == state]:
            lines.append(f"  {len(found)} {what}")
            lines += [f"    {file.dataset}: {file.source}" for file in found]
    return "\n".join(lines)


def _folder_of(file: NeededFile) -> str:
    return file.source.rpartition("/")[0]


def _line(file: NeededFile, width: int) -> str:
    size = "size unknown" if file.size_bytes is None else size_text(file.size_bytes)
    return f"    {file.dataset:<{width}} {size:>12}"


def _comparison(trials: Sequence[TrialSpec]) -> list[str]:
    """The methods at each size, and the seeds: what is run on every data set."""
    methods: dict[str, dict[str, None]] = {}
    for trial in trials:
        methods.setdefault(_size(trial.model), {})[trial.method] = None
    lines = [f"  {' '.join(names)}  ({size})" for size, names in methods.items()]
    seeds = dict.fromkeys(str(trial.seed) for trial in trials)
    return [*lines, *_several_values(trials), f"  seeds {_first(list(seeds), ' ')}"]


def _first(values: Sequence[str], between: str) -> str:
    """The first few of many values, and how many there are more."""
    more = f" and {len(values) - _MOST_VALUES} more" if len(values) > _MOST_VALUES else ""
    return between.join(values[:_MOST_VALUES]) + more


def _several_values(trials: Sequence[TrialSpec]) -> list[str]:
    """The fields of training and evaluation that are not the same in all trials: a line for each, method by method."""
    lines = []
    for section in ("training", "evaluation"):
        fields = dict.fromkeys(name for trial in trials[:1] for name in type(getattr(trial, section)).model_fields)
        for name in (name for name in fields if name not in _OF_THE_TASK):
            values: dict[str, dict[str, None]] = {}
            for trial in trials:
                if section == "evaluation" or name not in unused_in_training(METHODS[trial.method]):
                    values.setdefault(trial.method, {})[shown_value(getattr(getattr(trial, section), name))] = None
            if len({value for of_method in values.values() for value in of_method}) > 1:
                methods: dict[tuple[str, ...], list[str]] = {}
                for method, of_method in values.items():
                    methods.setdefault(tuple(of_method), []).append(method)
                parts = [
                    (f"{' '.join(names)}: " if len(methods) > 1 else "") + _first(several, ", ")
                    for several, names in methods.items()
                ]
                lines.append(f"  {name}  {'; '.join(parts)}")
    return lines


def _size(config: BackboneConfig) -> str:
    """Width, layers and context length, and whatever else differs from the defaults."""
    others = {name: value for name, value in config.identity().items() if name not in BackboneConfig.model_fields}
    parts = [f"width {config.d_model}", counted(config.n_layer, "layer"), f"context {config.context_length}"]
    return ", ".join([*parts, *(f"{name} {value}" for name, value in others.items())])


def _search(plan: Plan) -> list[str]:
    """How many trials the whole search has; the table has those that are known so far."""
    search, known = plan.sweep.search, plan.search
    if search is None or known is None:
        return []
    unit = "each method on each data set" if search.choose == "per_dataset" else "each method"
    tried = "all settings" if search.algorithm == "grid" else f"{search.settings} settings"
    rounds = len(search.round_sizes(search.settings)) if search.settings is not None else 1
    return [
        f"  search ({search.algorithm}): {tried} of {unit}, in {rounds} round{'s' if rounds > 1 else ''}, on seeds "
        f"{' '.join(map(str, search.seeds))}; chosen by the {search.by} score",
        f"  in all {known.selection_trials:,} trials to choose, then {known.report_trials:,} of the report with what "
        f"is chosen; the table has the {len(plan.trials):,} that are known so far",
    ]


def _early_stopping(plan: Plan) -> list[str]:
    rule = plan.sweep.early_stopping
    if rule is None:
        return []
    steps = sorted({step for trial in plan.trials for step in rungs_of(rule, trial)})
    rungs = " ".join(f"{step:,}" for step in steps)
    best = f"the best 1/{rule.reduction_factor} within a {rule.within}, seed by seed"
    return [f"  early stopping: after steps {rungs} {best}, go on"]


def _cost(cost: Cost) -> tuple[str, str, str]:
    return _short(cost.training_steps), _short(cost.env_steps), _short(cost.disk_bytes, "B")


def _short(number: float, unit: str = "") -> str:
    power = min(len(str(int(number))) - 1, 12) // 3
    return f"{number / 1000**power:.3g} {['', 'k', 'M', 'G', 'T'][power]}{unit}".strip()
