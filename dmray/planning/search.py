"""A search: which settings are tried in which round, and which one is chosen.

Pure functions of the sweep and of the outcomes of its trials. So a search needs no state of its own: after a kill the
same rounds follow from the ledgers. A group is what is searched together: a method on one data set, or with `choose`
"overall" on all data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product, zip_longest
from math import prod
from statistics import fmean
from typing import Any, Literal, NamedTuple

from dmray.errors import SpecError
from dmray.planning.settings import Cell, Field
from dmray.specs import Domain, SearchSpec, SweepSpec, TrialSpec, Values


class Outcome(NamedTuple):
    """What a trial has to say about its setting, or several trials together.

    `score`: normalized, of what finished. `curve`: the normalized scores by step. Open: not ended. Failed: ended
    without a score, by an error or because the loss was not finite.
    """

    state: Literal["open", "failed", "stopped", "finished"]
    score: float | None = None
    curve: Mapping[int, float] = {}


OPEN = Outcome("open")
OutcomeOf = Callable[[TrialSpec], Outcome]


class Candidate(NamedTuple):
    """A setting that is tried: the position of an entry of `models` in its group, and the values of its domains."""

    entry: int
    values: tuple[tuple[Field, Any], ...]


@dataclass(frozen=True)
class Group:
    """A method and the data sets on which one setting of it is chosen. `cells`: by entry of `models`, then data set."""

    method: str
    datasets: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]

    def __str__(self) -> str:
        where = self.datasets[0] if len(self.datasets) == 1 else f"{len(self.datasets)} data sets"
        return f"{self.method} on {where}"

    def domains(self, entry: int) -> Mapping[Field, Domain]:
        return self.cells[entry][0].domains

    @cached_property
    def size(self) -> int | None:
        """The number of settings; None if there are any number."""
        domains = [self.domains(entry).values() for entry in range(len(self.cells))]
        if not all(isinstance(domain, Values) for several in domains for domain in several):
            return None
        return sum(prod(len(domain.values) for domain in several) for several in domains)

    def all_candidates(self) -> Iterator[Candidate]:
        """Every setting, if there are finitely many."""
        for entry in range(len(self.cells)):
            domains = self.domains(entry)
            for values in product(*(domain.values for domain in domains.values())):
                yield Candidate(entry, tuple(zip(domains, values, strict=True)))

    def trials(self, candidate: Candidate, seeds: Iterable[int]) -> tuple[TrialSpec, ...]:
        """The trials of a setting on all data sets of the group.

        Raises:
            SpecError: its values do not fit each other.
        """
        settings = [cell.setting(dict(candidate.values)) for cell in self.cells[candidate.entry]]
        return tuple(setting.trial(seed) for seed in seeds for setting in settings)

    @cached_property
    def searched(self) -> tuple[Field, ...]:
        """The fields in which its settings differ."""
        fields = dict.fromkeys(field for of_entry in self.cells for cell in of_entry for field in cell.domains)
        entries = [of_entry[0].fields for of_entry in self.cells]
        for field in dict.fromkeys(field for entry in entries for field in entry):
            if len({repr(entry.get(field)) for entry in entries}) > 1:
                fields[field] = None
        return tuple(fields)

    def values_of(self, trial: TrialSpec) -> dict[str, Any]:
        """The values of `searched` in one of its trials, by the field's name."""
        return {name: getattr(getattr(trial, section), name) for section, name in self.searched}


class Tried(NamedTuple):
    """A setting that was tried: its selection trials and what they say together."""

    values: dict[str, Any]
    trials: tuple[TrialSpec, ...]
    outcome: Outcome


@dataclass(frozen=True)
class GroupResult:
    """How far the search of a group is; `wanted`: the number of settings to try, `tried` in the order of proposal."""

    group: Group
    wanted: int
    tried: tuple[Tried, ...]

    @property
    def over(self) -> bool:
        return len(self.tried) >= self.wanted and all(each.outcome.state != "open" for each in self.tried)

    @property
    def chosen(self) -> Tried | None:
        """The setting with the highest score, of equals the first; None before the end, or if none finished."""
        place = best_of([each.outcome for each in self.tried]) if self.over else None
        return self.tried[place] if place is not None else None


class Searched(NamedTuple):
    """The trials of a search so far: the rounds, each after the one before has ended, then the report's trials.

    `over`: the ids of selection trials of rounds that have ended; what failed there counts as failed.
    `without_choice`: the groups of whose settings none finished.
    """

    trials: tuple[TrialSpec, ...]
    over: frozenset[str]
    without_choice: tuple[Group, ...]


def groups_of(search: SearchSpec, cells: Sequence[Cell]) -> list[Group]:
    """The groups of a search, in the order of the file.

    Raises:
        SpecError: with `choose` "overall" a field has other values on one data set than on another.
    """
    found: dict[tuple[str, str], dict[tuple[int, int], list[Cell]]] = {}
    for cell in cells:
        key = cell.method, cell.dataset.name if search.choose == "per_dataset" else ""
        found.setdefault(key, {}).setdefault((cell.block, cell.entry), []).append(cell)
    groups = []
    for (method, _), entries in found.items():
        for of_entry in entries.values():
            for cell in of_entry:
                for field in (*of_entry[0].domains, *cell.domains):
                    if of_entry[0].domains.get(field) != cell.domains.get(field):
                        raise SpecError(
                            f"search.choose overall: '{method}' has other values of {'.'.join(field)} on "
                            f"{cell.dataset.name} than on {of_entry[0].dataset.name}; give both the same, or choose "
                            "per_dataset"
                        )
        datasets = tuple(dict.fromkeys(cell.dataset.name for of_entry in entries.values() for cell in of_entry))
        groups.append(Group(method, datasets, tuple(map(tuple, entries.values()))))
    return groups


def num_settings(search: SearchSpec, group: Group) -> int:
    """How many settings of the group are tried.

    Raises:
        SpecError: the group has not so many; or it has an interval, of which a grid cannot try all numbers.
    """
    if search.algorithm == "grid":
        return sum(cell.size for (cell, *_) in group.cells)
    assert search.settings is not None
    if group.size is not None and group.size < search.settings:
        raise SpecError(
            f"search.settings {search.settings}: there are only {group.size} settings of {group}; give more values, or "
            "algorithm: grid"
        )
    return search.settings


def num_trials(sweep: SweepSpec, search: SearchSpec, groups: Sequence[Group]) -> tuple[int, int]:
    """The number of selection trials and of report trials of the whole search."""
    tried = sum(num_settings(search, group) * len(group.datasets) for group in groups)
    return tried * len(search.seeds), sum(len(group.datasets) for group in groups) * len(sweep.seeds)


def search_trials(sweep: SweepSpec, search: SearchSpec, groups: Sequence[Group], outcome_of: OutcomeOf) -> Searched:
    """All trials that follow from the outcomes so far."""
    rounds: list[list[list[Candidate]]] = []  # by group
    over: set[str] = set()
    report: list[TrialSpec] = []
    without_choice = []
    for group in groups:
        of_group, past = [], list[tuple[Candidate, Outcome]]()
        for number, size in enumerate(search.round_sizes(num_settings(search, group))):
            proposed = _proposed(search, group, number, size, past)
            of_group.append(proposed)
            outcomes = [together(map(outcome_of, group.trials(each, search.seeds))) for each in proposed]
            if any(outcome.state == "open" for outcome in outcomes):
                break
            over |= {trial.trial_id for each in proposed for trial in group.trials(each, search.seeds)}
            past += zip(proposed, outcomes, strict=True)
        else:
            place = best_of([outcome for _, outcome in past])
            if place is None:
                without_choice.append(group)
            else:
                report += group.trials(past[place][0], sweep.seeds)
        rounds.append(of_group)
    selection = {trial.trial_id: trial for trial in _round_by_round(search, groups, rounds)}
    return Searched((*selection.values(), *report), frozenset(over), tuple(without_choice))


def group_results(
    sweep: SweepSpec, search: SearchSpec, groups: Sequence[Group], trials: Iterable[TrialSpec], outcome_of: OutcomeOf
) -> list[GroupResult]:
    """How far each group is, by the trials of a manifest (in their order, which is that of the proposals)."""
    by_group: dict[tuple[str, str], dict[str, list[TrialSpec]]] = {}
    group_of = {(group.method, name): group for group in groups for name in group.datasets}
    for trial in trials:
        group = group_of.get((trial.method, trial.dataset.name))
        if group is not None and sweep.is_selection(trial):
            settings = by_group.setdefault((group.method, group.datasets[0]), {})
            settings.setdefault(repr(group.values_of(trial)), []).append(trial)
    return [
        GroupResult(
            group,
            num_settings(search, group),
            tuple(
                Tried(group.values_of(of_setting[0]), tuple(of_setting), together(map(outcome_of, of_setting)))
                for of_setting in by_group.get((group.method, group.datasets[0]), {}).values()
            ),
        )
        for group in groups
    ]


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """What several trials of a setting say together: the worst state; the mean score; the mean at common steps."""
    each = list(outcomes)
    common = set.intersection(*(set(one.curve) for one in each))
    curve = {step: fmean(one.curve[step] for one in each) for step in sorted(common)}
    for state in ("open", "failed", "stopped"):
        if any(one.state == state for one in each):
            return Outcome(state, None, curve)
    return Outcome("finished", fmean(one.score for one in each if one.score is not None), curve)


def best_of(outcomes: Sequence[Outcome]) -> int | None:
    """The position of the highest score of what finished, of equals the first."""
    scores = [(-outcome.score, place) for place, outcome in enumerate(outcomes) if outcome.score is not None]
    return min(scores)[1] if scores else None


def _proposed(
    search: SearchSpec, group: Group, number: int, size: int, past: Sequence[tuple[Candidate, Outcome]]
) -> list[Candidate]:
    if search.algorithm == "grid":
        return list(group.all_candidates())
    from dmray.planning.sampling import propose  # loads Optuna

    return propose(search, group, number, size, past)


def _round_by_round(
    search: SearchSpec, groups: Sequence[Group], rounds: Sequence[Sequence[Sequence[Candidate]]]
) -> Iterator[TrialSpec]:
    """Selection trials in the order in which they start: in each round seed by seed, the methods together."""
    for of_round in zip_longest(*rounds, fillvalue=()):
        for seed in search.seeds:
            for candidates in zip_longest(*of_round):
                for group, candidate in zip(groups, candidates, strict=True):
                    if candidate is not None:
                        yield from group.trials(candidate, [seed])
