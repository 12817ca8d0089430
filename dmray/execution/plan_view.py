"""What `--plan` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import groupby

from rich.console import Group
from rich.table import Table

from dmray.execution.cost import Cost, total_cost
from dmray.execution.plan import Plan
from dmray.execution.survey import TrialState


def render_plan(plan: Plan, states: Mapping[str, TrialState]) -> Group:
    """Trials by data set in the order of their start, what they cost at most, and what is already done."""
    table = Table(title=f"sweep '{plan.sweep.name}': {len(plan.trials)} trials", title_justify="left", box=None)
    for name, justify in (("data set", "left"), ("methods", "left"), ("seeds", "left"), ("trials", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in ("training steps", "env steps <=", "disk", "done"):
        table.add_column(name, justify="right")
    log_every_steps = plan.sweep.tracking.log_every_steps
    for dataset, group in groupby(plan.trials, key=lambda trial: trial.dataset.name):
        trials = list(group)
        done = sum(states[trial.trial_id] in (TrialState.FINISHED, TrialState.DIVERGED) for trial in trials)
        table.add_row(
            dataset,
            " ".join(dict.fromkeys(trial.method for trial in trials)),
            " ".join(map(str, sorted({trial.seed for trial in trials}))),
            str(len(trials)),
            *_cost(total_cost(trials, log_every_steps)),
            f"{done}/{len(trials)}",
        )
    total = total_cost(plan.trials, log_every_steps)
    counts = Counter(states.values())
    steps, env_steps, disk = _cost(total)
    summary = f"{len(plan.trials)} trials: {steps} training steps, at most {env_steps} env steps, about {disk} on disk"
    progress = ", ".join(f"{counts[state]} {state}" for state in TrialState if counts[state])
    return Group(table, "", summary, progress)


def _cost(cost: Cost) -> tuple[str, str, str]:
    return _short(cost.training_steps), _short(cost.env_steps), _short(cost.disk_bytes, "B")


def _short(number: float, unit: str = "") -> str:
    power = min(len(str(int(number))) - 1, 12) // 3
    return f"{number / 1000**power:.3g} {['', 'k', 'M', 'G', 'T'][power]}{unit}".strip()
