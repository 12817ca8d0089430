"""Scores as curves: by training step, and by the fields in which trials of a sweep differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Literal, NamedTuple

from dmray.planning.settings import details_of
from dmray.reporting.results import Comparison, SeedGroup, TrialResult, label_of
from dmray.specs import TrialSpec

_MOST_POINTS = 200


class Curve(NamedTuple):
    """A seed group's score: mean, lowest and highest over `seeds` trials. `end`: the end of its legend.

    `at`: the training steps, or the values of an `Axis`.
    """

    at: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int
    end: str


class Axis(NamedTuple):
    """A field of trials that a figure has below: `field` of the section `section`; `text` is its name for readers."""

    section: Literal["training", "model"]
    field: str
    text: str

    def value(self, trial: TrialSpec) -> int | None:
        """None: the method has no such field."""
        found: int | None = getattr(getattr(trial, self.section), self.field, None)
        return found

    def changed(self, trial: TrialSpec, value: int) -> TrialSpec:
        """The trial with another value."""
        return trial.model_copy(
            update={self.section: getattr(trial, self.section).model_copy(update={self.field: value})}
        )


AXES = (
    Axis("training", "steps", "training steps"),
    Axis("model", "context_length", "context length"),
    Axis("model", "d_model", "width"),
    Axis("model", "n_layer", "number of layers"),
)


def curve_of(seed_group: SeedGroup) -> Curve | None:
    """The learning curve of a seed group, at the steps that all of its trials have; None if no trial has a score.

    Its trials are the finished ones. If none has finished, or seeds were stopped early, they are all that have a score.
    Of many steps only every n-th is drawn, because the figure cannot show more.
    """
    finished = [trial for trial in seed_group.scored if len(trial.scores)]
    trials = finished or [trial for trial in seed_group.trials if len(trial.scores)]
    if not trials:
        return None
    values = [_by_step(trial) for trial in trials]
    steps = sorted(set.intersection(*(set(each) for each in values)))
    steps = steps[:: -max(1, len(steps) // _MOST_POINTS)][::-1]  # the last one stays
    end = "" if finished else ", stopped early" if seed_group.stopped else ", unfinished"
    return _curve(steps, [[each[step] for each in values] for step in steps], len(trials), end)


def _by_step(trial: TrialResult) -> dict[int, float]:
    return dict(zip(trial.scores.step.tolist(), trial.scores.normalized.tolist(), strict=True))


def setting_curves(comparison: Comparison, axis: Axis) -> list[tuple[SeedGroup, Curve]]:
    """The last score by the values of a field, for each setting that has several of them and differs in nothing else.

    The mean is over the seeds that all values have. The seed group is that of the largest value, with the label of the
    setting. A setting whose values were run by two releases of its method's package has no curve.
    """
    members = {each.trial.seed_group_id: each.trial for each in comparison.trials if axis.value(each.trial) is not None}
    largest = max((value for trial in members.values() if (value := axis.value(trial)) is not None), default=0)
    alike = {group: axis.changed(trial, largest) for group, trial in members.items()}
    details = details_of(list(alike.values()))
    settings: dict[str, list[tuple[int, SeedGroup]]] = {}
    for group in comparison.seed_groups:
        first = group.trials[0].trial
        value = axis.value(first)
        if value is not None and any(trial.last for trial in group.scored):
            setting = alike[first.seed_group_id]
            settings.setdefault(label_of(setting, details[setting.seed_group_id]), []).append((value, group))
    several = {label: dict(groups) for label, groups in settings.items() if 1 < len(groups) == len(dict(groups))}
    return [
        (replace(by_value[max(by_value)], label=label), curve)
        for label, by_value in several.items()
        if (curve := _by_value(by_value)) is not None
    ]


def _by_value(groups: Mapping[int, SeedGroup]) -> Curve | None:
    values = sorted(groups)
    by_seed = [
        {trial.trial.seed: trial.last.normalized for trial in groups[value].scored if trial.last} for value in values
    ]
    seeds = sorted(set.intersection(*(set(each) for each in by_seed)))
    return _curve(values, [[each[seed] for seed in seeds] for each in by_seed], len(seeds), "") if seeds else None


def _curve(at: list[int], scores: list[list[float]], seeds: int, end: str) -> Curve:
    return Curve(at, [fmean(v) for v in scores], [min(v) for v in scores], [max(v) for v in scores], seeds, end)
