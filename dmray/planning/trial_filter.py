"""Select some trials of a plan: `--only EXPR`, `--shard i/n` and `--retry-failed`.

    EXPR     = term {"," term}                  all terms must match
    term     = key "=" pattern {"|" pattern}    one pattern must match; case matters; *, ? and [ab] as in a shell
    key      = dataset | task | method | preset | seed | trial, or a field of the model or of the training
               (d_model, context_length, learning_rate, ...); numbers are compared as numbers: 3e-4 is 0.0003;
               patterns with *, ? or [ab] are compared with the text that --plan shows: 1e-4 matches 1e-*

Shards divide the whole plan by the FLOPs of its trials, in training and in evaluation. They depend on the plan and on
nothing else, so n machines can divide a sweep without communication. `--only` then selects within a shard. A change of
the sweep file that changes the trials changes the shards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from heapq import heappop, heappush
from typing import Any, NamedTuple

from dmray.errors import SpecError
from dmray.planning.cost import network_flops
from dmray.planning.plan import Plan
from dmray.registry import nearest, short, unknown
from dmray.specs import TrainingSpec, TrialSpec, shown_value
from dmray.tasks import task_of

_SHARD = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})")
_KEYS = ("dataset", "task", "method", "preset", "seed", "trial")


@dataclass(frozen=True)
class TrialFilter:
    """Which trials to run; with the default values, all. `retry_failed`: only trials that failed."""

    only: str | None = None
    shard: str | None = None
    retry_failed: bool = False


ALL_TRIALS = TrialFilter()


def select_trials(plan: Plan, trial_filter: TrialFilter) -> tuple[TrialSpec, ...]:
    """The trials of `plan` that match `only` and `shard`, in the plan's order. Ignores `retry_failed`.

    Raises:
        SpecError: the expression or the shard is malformed, or a term matches no trial.
    """
    trials = plan.trials
    for key, patterns in _terms(trial_filter.only, _keys(plan)).items():
        trials = tuple(trial for trial in trials if _matches(_value(trial, key), patterns))
        if not trials:
            raise SpecError(f"--only {short(trial_filter.only or '')}: {_no_trial(plan, key, patterns)}")
    if trial_filter.shard is None:
        return trials
    number, count = _shard(trial_filter.shard, len(plan.trials))
    shards = shards_of(plan.trials, count)
    in_shard = tuple(trial for trial in trials if shards[trial.trial_id] == number)
    if not in_shard:
        raise SpecError(
            f"--shard {number}/{count}: none of the {len(trials)} trials of --only {short(trial_filter.only or '')} is "
            "in this shard; shards divide the whole plan"
        )
    return in_shard


def shards_of(trials: Sequence[TrialSpec], count: int) -> dict[str, int]:
    """The shard of each trial, from 1 to `count`, by trial id. The order of `trials` does not matter.

    Each trial, the largest first, is added to the shard with the least load. A shard's load is its share of all
    training or of all evaluation, whichever is larger: a machine may be slow at one of them.
    """
    flops = {trial.trial_id: network_flops(trial) for trial in trials}
    training = sum(each.training for each in flops.values()) or 1.0  # 0: a backbone that counts no FLOPs
    evaluation = sum(each.evaluation for each in flops.values()) or 1.0
    loads = [_Load(0.0, 0.0, 0.0, number) for number in range(1, count + 1)]
    shards = {}
    for trial_id in sorted(flops, key=lambda each: (-flops[each].training - flops[each].evaluation, each)):
        least = heappop(loads)
        trained = least.training + flops[trial_id].training / training
        evaluated = least.evaluation + flops[trial_id].evaluation / evaluation
        heappush(loads, _Load(max(trained, evaluated), trained, evaluated, least.number))
        shards[trial_id] = least.number
    return shards


class _Load(NamedTuple):
    """What a shard has so far, as shares of the whole plan; ordered by the larger one, ties by the shard's number."""

    largest: float
    training: float
    evaluation: float
    number: int


def _keys(plan: Plan) -> tuple[str, ...]:
    """The valid keys of a term: `_KEYS`, every field of a config in the plan, and those of the training."""
    models = dict.fromkeys(field for trial in plan.trials for field in type(trial.model).model_fields)
    return (*_KEYS, *models, *TrainingSpec.model_fields)


def _terms(expression: str | None, keys: Sequence[str]) -> Mapping[str, Sequence[str]]:
    terms: dict[str, Sequence[str]] = {}
    shown = f"--only {short(expression or '')}"
    for term in expression.split(",") if expression is not None else ():
        key, equals, patterns = (part.strip() for part in term.partition("="))
        if not equals or not patterns:
            raise SpecError(f"{shown}: '{short(term)}': write it as key=pattern, for example method=dm|dt,seed=0")
        if key not in keys:
            raise SpecError(f"{shown}: {unknown('key', key, keys)}")
        if key in terms:
            both = f"{short(terms[key][0])}|{short(patterns)}"
            raise SpecError(f"{shown}: '{key}' is given twice; write {key}={both}")
        terms[key] = [pattern.strip() for pattern in patterns.split("|")]
    return terms


def _value(trial: TrialSpec, key: str) -> Any:
    if key not in _KEYS:
        return getattr(trial.model, key, getattr(trial.training, key, ""))  # "" for methods without this field
    values = {
        "dataset": trial.dataset.name,
        "task": task_of(trial.dataset).name,
        "method": trial.method,
        "preset": trial.preset or "",
        "seed": trial.seed,
        "trial": trial.trial_id,
    }
    return values[key]


def _matches(value: Any, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(shown_value(value), pattern) or _same_number(value, pattern) for pattern in patterns)


def _same_number(value: Any, pattern: str) -> bool:
    try:
        return isinstance(value, int | float) and value == float(pattern)
    except ValueError:
        return False


def _no_trial(plan: Plan, key: str, patterns: Sequence[str]) -> str:
    wanted = short("|".join(patterns))
    found = [_value(trial, key) for trial in plan.trials]
    values = list(dict.fromkeys(map(shown_value, found)))
    if any(_matches(value, patterns) for value in found):
        return f"no trial that matches the terms before it has {key}={wanted}"
    best = nearest(patterns[0], values)
    known = ", ".join(values[:12]) + (", ..." if len(values) > 12 else "")
    return f"no trial has {key}={wanted}, " + (f"did you mean '{best}'?" if best else f"there are {known}")


def _shard(shard: str, num_trials: int) -> tuple[int, int]:
    match = _SHARD.fullmatch(shard)
    if match is None or not int(match[1]) <= int(match[2]):
        raise SpecError(f"--shard {short(shard)}: write it as i/n with i from 1 to n, for example 1/4")
    if int(match[2]) > num_trials:
        raise SpecError(
            f"--shard {shard}: the sweep has {num_trials} trials, so some shards would be empty; use at most "
            f"{num_trials} shards"
        )
    return int(match[1]), int(match[2])
