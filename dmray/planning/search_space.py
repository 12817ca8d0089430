"""What a search chooses from: the settings of each group, and what their trials say.

A group is what is searched together: a method on one data set, or with `choose` "overall" on all data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any, Literal, NamedTuple

from dmray.errors import SpecError
from dmray.planning.settings import Cell, Field
from dmray.specs import MAX_TRIALS, Domain, SearchSpec, TrialSpec, Values


class Outcome(NamedTuple):
    """What a trial has to say about its setting, or several trials together.

    `score`: normalized, of what finished. `curve`: the normalized scores by step. Open: not ended. Failed: ended
    without a score, by an error or because the loss was not finite.
    """

    state: Literal["open", "failed", "stopped", "finished"]
    score: float | None = None
    curve: Mapping[int, float] = {}


_MOST_COUNTED = 10_000  # settings; of more, enough are found by drawing
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

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """All settings whose values fit each other, each once, in the order of the file; for finitely many.

        Raises:
            SpecError: there is none.
        """
        found: dict[str, Candidate] = {}
        problem: SpecError | None = None
        for entry in range(len(self.cells)):
            domains = self.domains(entry)
            for values in product(*(domain.values for domain in domains.values())):
                candidate = Candidate(entry, tuple(zip(domains, values, strict=True)))
                try:
                    found.setdefault(self.key(candidate), candidate)
                except SpecError as cause:
                    problem = cause
        if problem is not None and not found:
            raise problem
        return tuple(found.values())

    def key(self, candidate: Candidate) -> str:
        """The same for settings that are the same trials. Raises a SpecError as `trials`."""
        return " ".join(trial.trial_id for trial in self.trials(candidate, [0]))

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


def groups_of(search: SearchSpec, cells: Sequence[Cell]) -> list[Group]:
    """The groups of a search, in the order of the file.

    Raises:
        SpecError: with `choose` "overall" a field has other values on one data set than on another.
    """
    found: dict[tuple[str, str], dict[tuple[int, int, str], list[Cell]]] = {}
    for cell in cells:
        key = cell.method, cell.dataset.name if search.choose == "per_dataset" else ""
        found.setdefault(key, {}).setdefault((cell.block, cell.entry, cell.preset), []).append(cell)
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
        SpecError: the group has not so many, or more than a sweep can have; or it has an interval, of which a grid
            cannot try all numbers.
    """
    if search.settings is None:
        size = sum(cell.size for (cell, *_) in group.cells)
        if size > MAX_TRIALS:
            raise SpecError(f"search: {group} has {size:,} settings; a sweep has at most {MAX_TRIALS:,} trials")
        return len(group.candidates)
    if group.size is not None and group.size <= max(search.settings, _MOST_COUNTED):
        there_are = len(group.candidates)
        if there_are < search.settings:
            raise SpecError(
                f"search.settings {search.settings}: there are only {there_are} settings of {group}; give more values, "
                "or algorithm: grid"
            )
    return search.settings
