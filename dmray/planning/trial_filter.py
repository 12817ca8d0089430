"""Select some trials of a plan: `--only EXPR`, `--shard i/n` and `--retry-failed`.

    EXPR     = term {"," term}                  all terms must match
    term     = key "=" pattern {"|" pattern}    one pattern must match; case matters; *, ? and [ab] as in a shell
    key      = dataset | task | method | seed | trial, or a field of the model or of the training
               (d_model, context_length, learning_rate, ...); numbers are compared as numbers: 3e-4 is 0.0003

A trial's shard depends only on its id. So n machines can divide a sweep without communication, and trials that stay
in a changed sweep file stay in their shard.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dmray.errors import SpecError
from dmray.planning.plan import Plan
from dmray.registry import nearest, short, unknown
from dmray.specs import TrainingSpec, TrialSpec
from dmray.tasks import task_of

_SHARD = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})")
_KEYS = ("dataset", "task", "method", "seed", "trial")


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
    number, count = _shard(trial_filter.shard)
    return tuple(trial for trial in trials if shard_of(trial.trial_id, count) == number)


def shard_of(trial_id: str, count: int) -> int:
    """The trial's shard, from 1 to `count`. It is computed from the ten hex digits of a hash that end the id."""
    return int(trial_id[-10:], 16) % count + 1


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


def _value(trial: TrialSpec, key: str) -> str:
    if key not in _KEYS:
        return str(getattr(trial.model, key, getattr(trial.training, key, "")))  # "" for methods without this field
    values = {
        "dataset": trial.dataset.name,
        "task": task_of(trial.dataset).name,
        "method": trial.method,
        "seed": str(trial.seed),
        "trial": trial.trial_id,
    }
    return values[key]


def _matches(value: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(value, pattern) or _same_number(value, pattern) for pattern in patterns)


def _same_number(value: str, pattern: str) -> bool:
    try:
        return float(value) == float(pattern)
    except ValueError:
        return False


def _no_trial(plan: Plan, key: str, patterns: Sequence[str]) -> str:
    wanted = short("|".join(patterns))
    values = list(dict.fromkeys(_value(trial, key) for trial in plan.trials))
    if any(_matches(value, patterns) for value in values):
        return f"no trial that matches the terms before it has {key}={wanted}"
    best = nearest(patterns[0], values)
    known = ", ".join(values[:12]) + (", ..." if len(values) > 12 else "")
    return f"no trial has {key}={wanted}, " + (f"did you mean '{best}'?" if best else f"there are {known}")


def _shard(shard: str) -> tuple[int, int]:
    match = _SHARD.fullmatch(shard)
    if match is None or not int(match[1]) <= int(match[2]):
        raise SpecError(f"--shard {short(shard)}: write it as i/n with i from 1 to n, for example 1/4")
    return int(match[1]), int(match[2])
