"""A plan for a terminal: what `--plan` prints, and what a notebook shows of `dmray.plan_sweep`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Group

from dmray.models import BackboneConfig
from dmray.planning.cost import Cost, total_cost
from dmray.planning.plan import Plan
from dmray.planning.time_estimate import TimeEstimate
from dmray.progress.trial_status import DONE, TrialStatus
from dmray.specs import SweepSpec, TrialSpec
from dmray.terminal import FittingTable

_ORDERS = {
    "methods_together": "in this order; on each data set, seed by seed",
    "seeds_together": "in this order; on each data set, method by method with all seeds",
    "cheap_first": "those with the least work first",
}


def render_plan(plan: Plan, states: Mapping[str, TrialStatus] | None = None) -> Group:
    """Trials by data set in the order of their start, what they cost at most, and, given `states`, what is done."""
    table = FittingTable(box=None, pad_edge=False)
    table.add_column("data set", no_wrap=True)
    for name in ("trials", "training steps", "env steps <=", "disk", *(["done"] if states else [])):
        table.add_column(name, justify="right", no_wrap=True)
    every = (plan.sweep.tracking.log_every_steps, plan.sweep.faults.keep_every_steps)
    for dataset in dict.fromkeys(trial.dataset.name for trial in plan.trials):
        trials = [trial for trial in plan.trials if trial.dataset.name == dataset]
        done = [f"{sum(states[trial.trial_id] in DONE for trial in trials)}/{len(trials)}"] if states else []
        table.add_row(dataset, str(len(trials)), *_cost(total_cost(trials, *every)), *done)
    steps, env_steps, disk = _cost(total_cost(plan.trials, *every))
    counts = Counter(states.values() if states else ())
    by_state = [f"{counts[state]} {state}" for state in TrialStatus if counts[state]]
    return Group(
        f"sweep '{plan.sweep.name}': {len(plan.trials)} trials, {_ORDERS[plan.sweep.order]}:",
        *_comparison(plan.trials),
        *_early_stopping(plan.sweep),
        "",
        table,
        "",
        f"cost: {steps} training steps, at most {env_steps} env steps, about {disk} on disk",
        *([f"trials: {', '.join(by_state)}"] if states else []),
    )


def render_time_estimate(estimate: TimeEstimate, hardware: str) -> str:
    """The estimate in one line, and the calibration that it was made from."""
    gpus = f"{estimate.gpu_hours:.3g} GPU-hours, " if estimate.gpu_hours else ""
    return (
        f"time: {estimate.trial_hours:.3g} hours of training, {gpus}at most {estimate.evaluation_core_hours:.3g} "
        f"core-hours of evaluation; about {estimate.wall_hours:.3g} hours in all\n"
        f"  (to a factor of two, from the calibration of {hardware})"
    )


def _comparison(trials: Sequence[TrialSpec]) -> list[str]:
    """The methods at each size, and the seeds: what is run on every data set."""
    methods: dict[str, dict[str, None]] = {}
    for trial in trials:
        methods.setdefault(_size(trial.model), {})[trial.method] = None
    lines = [f"  {' '.join(names)}  ({size})" for size, names in methods.items()]
    seeds = dict.fromkeys(str(trial.seed) for trial in trials)
    return [*lines, f"  seeds {' '.join(seeds)}"]


def _size(config: BackboneConfig) -> str:
    """Width, layers and context length, and whatever else differs from the defaults."""
    others = {name: value for name, value in config.identity().items() if name not in BackboneConfig.model_fields}
    parts = [f"width {config.d_model}", f"{config.n_layer} layers", f"context {config.context_length}"]
    return ", ".join([*parts, *(f"{name} {value}" for name, value in others.items())])


def _early_stopping(sweep: SweepSpec) -> list[str]:
    rule = sweep.early_stopping
    if rule is None:
        return []
    rungs = " ".join(f"{step:,}" for step in rule.rungs(sweep.training, sweep.evaluation))
    best = f"the best 1/{rule.reduction_factor} within a {rule.within}, seed by seed"
    return [f"  early stopping: after steps {rungs} {best}, go on"]


def _cost(cost: Cost) -> tuple[str, str, str]:
    return _short(cost.training_steps), _short(cost.env_steps), _short(cost.disk_bytes, "B")


def _short(number: float, unit: str = "") -> str:
    power = min(len(str(int(number))) - 1, 12) // 3
    return f"{number / 1000**power:.3g} {['', 'k', 'M', 'G', 'T'][power]}{unit}".strip()
