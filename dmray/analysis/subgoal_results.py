"""What was measured of the subgoals of each policy, by setting; and the tables of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dmray.analysis.stored import MeasuredPolicy, SettingNames, settings_of
from dmray.analysis.subgoal_measures import SOURCES, Measured, reach_curve
from dmray.analysis.subgoal_sources import FED
from dmray.methods import METHODS
from dmray.reporting.aggregates import estimate, interval_of_runs, mean
from dmray.specs import TrialSpec

_RADII = 40  # of the curve


@dataclass(frozen=True)
class RunSubgoals:
    """What was measured of one policy. `fingerprint`: of its data set.

    `visited`: the distances to the nearest state that is visited, (P,) by source. `scores`: the normalized score of
    each episode by what the low network was fed; empty without episodes.
    """

    trial: TrialSpec
    step: int
    fingerprint: str
    within: int
    radius: float
    measured: Mapping[str, Measured]
    visited: Mapping[str, np.ndarray] = field(repr=False)
    scores: Mapping[str, np.ndarray] = field(repr=False)


class Setting(NamedTuple):
    """The runs of one method with one setting on one data set: they differ in the seed."""

    dataset: str
    label: str
    runs: tuple[RunSubgoals, ...]

    @property
    def method(self) -> str:
        return self.runs[0].trial.method

    @property
    def radii(self) -> np.ndarray:
        """The radii of the curve: 0 to four times the one that counts."""
        return np.linspace(0, 4 * self.runs[0].radius, _RADII + 1)

    def values(self, source: str, name: str) -> np.ndarray:
        """A field of `Measured`, (runs,)."""
        return np.array([getattr(run.measured[source], name) for run in self.runs], np.float64)

    def reach(self, source: str) -> np.ndarray:
        """The share that is reached at each of `radii`, averaged over the runs."""
        return np.asarray(np.mean([reach_curve(run.visited[source], self.radii) for run in self.runs], axis=0))

    def score(self, fed: str) -> tuple[float, tuple[float, float] | None]:
        """The mean score over runs and episodes, and its interval."""
        return _mean_and_interval(self.runs, fed)


def group_runs(runs: Sequence[RunSubgoals]) -> list[Setting]:
    """The runs by setting, data set by data set. Checkpoints of one trial are settings of their own."""
    names = settings_of([MeasuredPolicy(run.trial, run.step, run.fingerprint) for run in runs])
    groups: dict[tuple[SettingNames, str], list[RunSubgoals]] = {}
    for run in runs:
        groups.setdefault((names[run.trial.trial_id, run.step], run.trial.seed_group_id), []).append(run)
    datasets = list(dict.fromkeys(named.dataset for named, _ in groups))
    found = []
    for (named, _), same in sorted(groups.items(), key=lambda item: datasets.index(item[0][0].dataset)):
        label = ", ".join(filter(None, (METHODS[same[0].trial.method].label, named.setting)))
        found.append(Setting(named.dataset, label, tuple(same)))
    return found


def tables_of(settings: Sequence[Setting]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table.

    `runs`: each run and source; `settings`: means over seeds with bootstrap intervals; `reach`: the share reached by
    radius; `scores`: by what the low network is fed, of each run and of all runs of a setting.
    """
    return {
        "runs": [row for setting in settings for row in _run_rows(setting)],
        "settings": [row for setting in settings for row in _setting_rows(setting)],
        "reach": [row for setting in settings for row in _reach_rows(setting)],
        "scores": [row for setting in settings for row in _score_rows(setting)],
    }


def _run_rows(setting: Setting) -> Iterable[dict[str, Any]]:
    for run in setting.runs:
        for source in SOURCES:
            yield {
                "trial_id": run.trial.trial_id,
                "dataset": setting.dataset,
                "method": run.trial.method,
                "setting": setting.label,
                "seed": run.trial.seed,
                "step": run.step,
                "source": source,
                **run.measured[source]._asdict(),
                "within": run.within,
                "radius": run.radius,
                "points": len(run.visited[source]),
            }


def _setting_rows(setting: Setting) -> Iterable[dict[str, Any]]:
    """Means over seeds, with bootstrap intervals over seeds where there are several."""
    for source in SOURCES:
        row: dict[str, Any] = {"dataset": setting.dataset, "setting": setting.label, "source": source}
        row["seeds"] = len(setting.runs)
        for name in Measured._fields:
            found = estimate([setting.values(source, name)], mean)
            low, high = found.interval or (None, None)
            row |= {name: found.value, f"{name}_low": low, f"{name}_high": high}
        yield row


def _reach_rows(setting: Setting) -> Iterable[dict[str, Any]]:
    for source in SOURCES:
        for radius, share in zip(setting.radii.tolist(), setting.reach(source).tolist(), strict=True):
            place = {"dataset": setting.dataset, "setting": setting.label, "source": source}
            yield {**place, "radius": radius, "reached": share}


def _score_rows(setting: Setting) -> Iterable[dict[str, Any]]:
    """Of each run, and of all runs together where there are several."""
    if not setting.runs[0].scores:
        return
    for runs in (*((run,) for run in setting.runs), *([setting.runs] if len(setting.runs) > 1 else [])):
        for fed in FED:
            value, interval = _mean_and_interval(runs, fed)
            low, high = interval or (None, None)
            yield {
                "dataset": setting.dataset,
                "setting": setting.label,
                "seeds": " ".join(str(run.trial.seed) for run in runs),
                "fed": fed,
                "episodes": sum(len(run.scores[fed]) for run in runs),
                "normalized_score": value,
                "low": low,
                "high": high,
            }


def _mean_and_interval(runs: Sequence[RunSubgoals], fed: str) -> tuple[float, tuple[float, float] | None]:
    scores = [run.scores[fed] for run in runs]
    return float(np.mean([each.mean() for each in scores])), interval_of_runs(scores)
