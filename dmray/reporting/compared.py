"""Which methods are compared in a table, with Holm's correction over these comparisons, and sentences about them.

Compared are each method with its baselines of the same size, and the method with the highest mean with every other; if
rows differ in the number of training steps, only those of the same number. One family of comparisons decides what a
table prints in bold, what its sentences say, and what `differences_table` lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dmray.methods import METHODS
from dmray.planning.settings import preset_fields
from dmray.reporting.differences import LEVEL, POWER, RESOLUTION, Difference, SeedScores, difference, holm
from dmray.reporting.document import Table, TableCell

BOLD_RULE = (
    "Bold: the highest mean of a {line}, and every mean that is not distinguishable from it: less than "
    f"{RESOLUTION:g} lower, or not lower by a t test at 5 % (paired by seed where the seeds are the same, with Holm's "
    "correction for all comparisons made). Where a method has one seed nothing can be tested, so nothing is bold."
)


class Candidate(NamedTuple):
    """A row of a table: its label, its method, its settings, and its scores by seed, one mapping per data set.

    `preset`: the preset of the method whose fields it has.
    """

    label: str
    method: str
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    scores: tuple[SeedScores, ...]
    preset: str | None = None

    @property
    def mean(self) -> float:
        """The mean over data sets of the means over seeds."""
        return float(np.mean([np.mean(list(each.values())) for each in self.scores]))


@dataclass(frozen=True)
class Compared:
    """Two rows. `p_value`: corrected for all `tests` that were made together; None where nothing can be tested."""

    first: str
    second: str
    difference: Difference
    p_value: float | None
    tests: int

    @property
    def settled(self) -> bool:
        """Whether the test finds the difference."""
        return self.p_value is not None and self.p_value < LEVEL and not self.difference.tiny

    @property
    def indistinguishable(self) -> bool:
        """Whether there are enough seeds to find a difference, and none is found."""
        several = min(self.difference.seeds) > 1
        return several and (self.difference.tiny or (self.p_value is not None and not self.settled))

    @property
    def conclusion(self) -> str:
        """One word for a table, about the first of the two."""
        if self.difference.level:
            return "level"
        if self.p_value is None:
            return "unknown with one seed" if min(self.difference.seeds) < 2 else "unknown: no spread"
        if not self.settled:
            return "not settled"
        return "higher" if self.difference.value > 0 else "lower"

    def lead(self, what: str = "last score") -> str:
        """A sentence that says which of the two is ahead, by how much, and whether that is settled."""
        found = self.difference
        if found.tiny:
            both = f"{self.first} and {self.second}{' are level' if found.level else ''}: the {what}s"
            sentence = f"{both} differ by less than {RESOLUTION:g} normalized points, the resolution of this report"
            if found.interval is not None:
                sentence = f"{sentence} (95 % interval {_from_to(found.interval)}, {found.seeds_text})"
            if found.level:
                return f"{sentence}."
            why = "the interval contains larger differences" if found.interval else "with one seed there is no interval"
            return f"{sentence}; {why}, so this is not settled."
        winner, loser = (self.first, self.second) if found.value > 0 else (self.second, self.first)
        sentence = f"{winner} is ahead of {loser} by {abs(found.value):z.1f} normalized points ({what}"
        if found.interval is None or self.p_value is None:
            why = "with one seed there is no interval" if min(found.seeds) < 2 else "there is no spread over seeds"
            return f"{sentence}; {why}, so this is not settled)."
        low, high = found.interval if found.value > 0 else (-found.interval[1], -found.interval[0])
        sentence = f"{sentence}, 95 % interval {_from_to((low, high))}, {found.seeds_text})"
        if self.settled:
            return f"{sentence}: settled."
        if low <= 0:
            return f"{sentence}: not settled, because the interval contains 0."
        return (
            f"{sentence}: not settled after Holm's correction for {self.tests} comparisons (p = {self.p_value:z.2f})."
        )

    def outlook(self) -> str:
        """Sentences that say which difference these seeds can show, and how many more would settle this one, or ""."""
        level = LEVEL / max(self.tests, 1)
        if self.settled or (smallest := self.difference.detectable(level)) is None:
            return ""
        over = f" (corrected for {self.tests} comparisons)" if self.tests > 1 else ""
        sentence = (
            f"{self.first} and {self.second}: with {self.difference.seeds_text} a t test at {100 * LEVEL:g} %{over} "
            f"detects a true difference of {smallest:z.1f} points with a power of {100 * POWER:g} %."
        )
        if self.difference.tiny:
            return sentence
        more = self.difference.more_seeds(level)
        count = "1 more seed" if more == 1 else f"{'More than 1,000' if more is None else f'{more:,}'} more seeds"
        return f"{sentence} {count} of each would detect the measured one, if it is true and the spread stays."


def compare(candidates: Sequence[Candidate], baseline: str | None = None) -> tuple[Compared, ...]:
    """All comparisons of a table, corrected together. `baseline`: the only baseline; None: each method's own."""
    found = [(ours, theirs, difference(ours.scores, theirs.scores)) for ours, theirs in _pairs(candidates, baseline)]
    raw = [each.p_value for _, _, each in found if each.p_value is not None]
    corrected = iter(holm(raw))
    return tuple(
        Compared(ours.label, theirs.label, each, None if each.p_value is None else next(corrected), len(raw))
        for ours, theirs, each in found
    )


def marked(candidates: Sequence[Candidate], comparisons: Iterable[Compared]) -> set[str]:
    """The labels to print in bold: the highest mean, and those that are not distinguishable from it (`BOLD_RULE`)."""
    if len(candidates) < 2:
        return set()
    best = max(candidates, key=lambda each: each.mean).label
    with_best = [each for each in comparisons if best in (each.first, each.second)]
    tied = {label for each in with_best if each.indistinguishable for label in (each.first, each.second)}
    return {best, *tied} if tied or any(each.settled for each in with_best) else set()


def differences_table(comparisons: Sequence[Compared], data_sets: str, name: str, score: str) -> Table:
    """Each comparison with its intervals, its corrected p-value and a conclusion."""
    rows = []
    for each in comparisons:
        found = each.difference
        interval, bootstrap = (_in_brackets(limits) for limits in (found.interval, found.bootstrap))
        p_value = "-" if each.p_value is None else "<0.001" if each.p_value < 0.001 else f"{each.p_value:z.3f}"
        texts = (f"{found.value:+z.1f} {interval}", bootstrap, found.seeds_text, p_value, each.conclusion)
        rows.append((TableCell(f"{each.first} minus {each.second}"), *map(TableCell, texts)))
    tests = max((each.tests for each in comparisons), default=0)
    return Table(
        f"Differences of the {score} ({data_sets})",
        ("methods", "difference [95 %]", "bootstrap [95 %]", "seeds", "p (Holm)", "conclusion"),
        tuple(rows),
        name=f"differences-{name}",
        note=_note(tests),
    )


def _note(tests: int) -> str:
    if not tests:
        return "Nothing can be tested, because a method has one seed."
    p_value = "p: t test over seeds."
    if tests > 1:
        p_value = (
            f"p: t tests over seeds, corrected by Holm for the {tests} comparisons of this table; the interval of each "
            "difference is not corrected."
        )
    return (
        f"{p_value} Level: less than {RESOLUTION:g} apart, and the interval contains no more. Bootstrap intervals of "
        "few seeds are too narrow, so they decide nothing here."
    )


def of_one_budget(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """The rows by their number of training steps: rows of different numbers are not compared."""
    budgets: dict[Any, list[Candidate]] = {}
    for each in candidates:
        budgets.setdefault(each.settings.get("steps"), []).append(each)
    return list(budgets.values())


def bold_rule(candidates: Sequence[Candidate], line: str) -> str:
    """What bold means in the lines of a table of these rows."""
    only = " Only rows of the same number of training steps are compared." if len(of_one_budget(candidates)) > 1 else ""
    return BOLD_RULE.format(line=line) + only


def _pairs(candidates: Sequence[Candidate], baseline: str | None) -> list[tuple[Candidate, Candidate]]:
    return [pair for alike in of_one_budget(candidates) for pair in _pairs_of(alike, baseline)]


def _pairs_of(candidates: Sequence[Candidate], baseline: str | None) -> list[tuple[Candidate, Candidate]]:
    found: dict[frozenset[str], tuple[Candidate, Candidate]] = {}
    for ours in candidates:
        for wanted in [baseline] if baseline else METHODS[ours.method].baselines:
            for theirs in _counterparts(ours, [each for each in candidates if each.method == wanted]):
                found.setdefault(frozenset((ours.label, theirs.label)), (ours, theirs))
    if candidates:
        best = max(candidates, key=lambda each: each.mean)
        for other in candidates:
            if other is not best:
                found.setdefault(frozenset((best.label, other.label)), (best, other))
    return list(found.values())


def _counterparts(ours: Candidate, others: Sequence[Candidate]) -> list[Candidate]:
    """Of another method: the rows of the same size; of these the ones with the same training, if there are any.

    A size is what no preset gives. If there are several presets of the other method, and none of `ours`, each of them
    counts: what a preset gives need not be the same.
    """
    if not others or ours.method == others[0].method:
        return []
    of_presets = preset_fields(others[0].method)
    same_size = [each for each in others if _agree(ours.model, each.model, of_presets)]
    several = ours.preset is None and len({each.preset for each in same_size} - {None}) > 1

    def is_alike(other: Candidate) -> bool:
        free = of_presets if several and other.preset is not None else frozenset()
        return _agree(ours.model, other.model, free) and _agree(ours.settings, other.settings, free)

    return [each for each in same_size if is_alike(each)] or same_size


def _agree(one: Mapping[str, Any], other: Mapping[str, Any], free: frozenset[str] = frozenset()) -> bool:
    """Whether two settings are equal in all fields that both have, without those that are `free`."""
    return all(one[field] == other[field] for field in (one.keys() & other.keys()) - free)


def _from_to(limits: tuple[float, float]) -> str:
    return f"{limits[0]:z.1f} to {limits[1]:z.1f}"


def _in_brackets(limits: tuple[float, float] | None) -> str:
    return "" if limits is None else f"[{limits[0]:z.1f}, {limits[1]:z.1f}]"
