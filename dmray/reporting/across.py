"""Results over all data sets of one protocol: rliable's aggregates, probabilities of improvement, and run times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from statistics import fmean

import numpy as np

from dmray.records import ResultIdentity
from dmray.reporting.aggregates import (
    Statistic,
    estimate,
    estimate_text,
    iqm,
    mean,
    median,
    optimality_gap,
    probability_of_improvement,
)
from dmray.reporting.document import Table, TableCell
from dmray.reporting.results import Comparison, Protocol, SeedGroup

_STATISTICS: tuple[tuple[str, Statistic], ...] = (
    ("mean", mean),
    ("median", median),
    ("IQM", iqm),
    ("optimality gap (lower is better)", optimality_gap),
)


@dataclass(frozen=True)
class ProtocolResults:
    """The comparisons of one protocol, each data set once, with one code and one release of each simulator.

    `name`: the protocol, with what sets it apart from other results of this protocol. `several`: the data sets that
    are left out, because they have results of several contents of the data or several settings of the task.
    """

    protocol: Protocol
    comparisons: tuple[Comparison, ...]
    name: str
    several: tuple[str, ...] = ()

    @property
    def score_name(self) -> str:
        """The score that is compared; of an evaluation after training its protocol names the checkpoint."""
        return "normalized score" if self.protocol.reevaluated else "last normalized score"

    @property
    def slug(self) -> str:
        """What the group's tables are called in LaTeX: its data set, or its protocol if there are several."""
        return self.comparisons[0].name if len(self.comparisons) == 1 else f"all-{self.protocol.simulation}"

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels of all seed groups: the methods, with the fields in which several sizes differ."""
        return tuple(
            dict.fromkeys(seed_group.label for comparison in self.comparisons for seed_group in comparison.seed_groups)
        )

    @cached_property
    def ranked(self) -> tuple[str, ...]:
        """The labels that can be in aggregates: those of which no seed was stopped early."""
        out = {
            seed_group.label
            for comparison in self.comparisons
            for seed_group in comparison.seed_groups
            if seed_group.stopped
        }
        return tuple(label for label in self.labels if label not in out)

    @cached_property
    def complete(self) -> tuple[Comparison, ...]:
        """The data sets on which every ranked label has a finished seed. Aggregates are over these."""
        return tuple(
            comparison
            for comparison in self.comparisons
            if self.ranked and all(len(x) for x in _scores([comparison], self.ranked))
        )

    def seed_groups(self, label: str) -> tuple[SeedGroup, ...]:
        """The label's seed groups, one per data set."""
        return tuple(
            seed_group
            for comparison in self.comparisons
            for seed_group in comparison.seed_groups
            if seed_group.label == label
        )

    def scores(self, label: str) -> list[np.ndarray]:
        """The last normalized scores of all seeds, one array per complete data set."""
        return self._scores_by_label[label]

    @cached_property
    def _scores_by_label(self) -> dict[str, list[np.ndarray]]:
        return {label: _scores(self.complete, [label]) for label in self.ranked}


def results_by_protocol(comparisons: Sequence[Comparison]) -> list[ProtocolResults]:
    """Group comparisons by protocol, code and releases of simulators.

    A data set with several comparisons in a group is in none of the group's aggregates: each is a group of its own.
    """
    ranked = sorted(comparisons, key=lambda comparison: str(comparison.protocol))
    found = []
    for protocol, each in groupby(ranked, key=lambda item: item.protocol):
        members = list(each)
        groups = _by_code_and_simulators(members)
        for group in groups:
            found += _once_each(protocol, group, len(groups) > 1)
    return found


def _by_code_and_simulators(comparisons: list[Comparison]) -> list[list[Comparison]]:
    packages = _packages_with_several_releases(comparisons)
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for comparison in comparisons:
        identity = comparison.identity or ResultIdentity(code="")
        alone = str(identity) if identity.mixed else ""
        releases = (comparison.simulators.get(name, "") for name in packages)
        groups.setdefault((identity.code, alone, *releases), []).append(comparison)
    return list(groups.values())


def _packages_with_several_releases(comparisons: Iterable[Comparison]) -> list[str]:
    releases: dict[str, set[str]] = {}
    for comparison in comparisons:
        for name, release in comparison.simulators.items():
            releases.setdefault(name, set()).add(release)
    return sorted(name for name, found in releases.items() if len(found) > 1)


def _once_each(protocol: Protocol, comparisons: list[Comparison], apart: bool) -> list[ProtocolResults]:
    names = [comparison.dataset.name for comparison in comparisons]
    several = tuple(dict.fromkeys(name for name in names if names.count(name) > 1))
    kept = tuple(each for each in comparisons if each.dataset.name not in several)
    name = str(protocol)
    if apart and (identity := comparisons[0].identity):
        releases = {pair: None for each in comparisons for pair in each.simulators.items()}
        simulators = "".join(f", {package} {release}" for package, release in sorted(releases))
        name = f"{name}, {identity.label(['code'])}{simulators}"
    alone = [ProtocolResults(protocol, (each,), name) for each in comparisons if each.dataset.name in several]
    return [*([ProtocolResults(protocol, kept, name, several)] if kept else []), *alone]


def aggregate_table(group: ProtocolResults) -> Table:
    """Each statistic with its 95 % interval, over all seeds of all complete data sets."""
    rows = []
    for label in group.ranked:
        scores = group.scores(label)
        seed_groups = [TableCell(estimate_text(estimate(scores, statistic))) for _, statistic in _STATISTICS]
        rows.append((TableCell(label), TableCell(str(sum(map(len, scores)))), *seed_groups))
    title = f"{group.score_name.capitalize()} over {data_sets(group)}, [95 % bootstrap interval] ({group.name})"
    columns = ("method", "runs", *(name for name, _ in _STATISTICS))
    return Table(title, columns, tuple(rows), name=f"aggregates-{group.slug}")


def improvement_table(group: ProtocolResults, pairs: Iterable[tuple[str, str]]) -> Table:
    """For each pair of labels the probability that a run of the first has a higher score than one of the second."""
    rows = []
    for ours, theirs in pairs:
        found = probability_of_improvement(group.scores(ours), group.scores(theirs))
        interval = "-" if found.interval is None else f"[{found.interval[0]:z.2f}, {found.interval[1]:z.2f}]"
        rows.append((TableCell(f"{ours} over {theirs}"), TableCell(f"{found.value:z.2f}"), TableCell(interval)))
    return Table(
        f"Probability that a run has a higher score than one of the other method ({data_sets(group)})",
        ("methods", "probability", "bootstrap [95 %]"),
        tuple(rows),
        name=f"improvement-{group.slug}",
    )


def cost_table(group: ProtocolResults) -> Table:
    """Mean wall-clock times of finished trials. Evaluations run at the same time as training."""
    rows = []
    for label in group.labels:
        trials = [trial for seed_group in group.seed_groups(label) for trial in seed_group.trials if trial.train_s]
        if trials:
            seconds = [trial.train_s or 0.0 for trial in trials]
            rate = sum(trial.steps for trial in trials) / sum(seconds)
            evaluations = sum(len(trial.scores) for trial in trials)
            each = sum(trial.evaluation_s for trial in trials) / max(evaluations, 1)
            numbers = (f"{len(trials)}", _duration(fmean(seconds)), f"{rate:z,.1f}", f"{evaluations}", f"{each:z,.1f}")
            rows.append((TableCell(label), *map(TableCell, numbers)))
    columns = ("method", "trials", "time per trial", "steps per second", "evaluations", "seconds per evaluation")
    title = "Wall-clock time (means; evaluations run at the same time as training)"
    return Table(title, columns, tuple(rows), name=f"time-{group.slug}")


def _scores(comparisons: Iterable[Comparison], labels: Iterable[str]) -> list[np.ndarray]:
    seed_groups = {(id(c), seed_group.label): seed_group for c in comparisons for seed_group in c.seed_groups}
    return [
        np.array([trial.last.normalized for trial in seed_groups[key].scored if trial.last])
        if key in seed_groups
        else np.array([])
        for c in comparisons
        for key in ((id(c), label) for label in labels)
    ]


def data_sets(group: ProtocolResults) -> str:
    """The number of complete data sets in words, for the titles of tables."""
    count, of = len(group.complete), len(group.comparisons)
    return f"{count} data set{'s' if count > 1 else ''}" + (
        f" of {of}: those that all methods have" if count < of else ""
    )


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:z.0f} s"
    return f"{seconds / 60:z.0f} min" if seconds < 36_000 else f"{seconds / 3600:z.1f} h"
