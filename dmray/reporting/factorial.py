"""Rewards x backbone: the effects of the return token and of the backbone on the score, from a 2 x 2 of methods.

A square is four methods that differ only in the backbone and in whether they have the return token: by dmray's own
registry DT, DT-R, DM+R and DM. With the means of the four cells over seeds, on one data set,

    a_r, a_0    the first backbone with and without returns (DT, DT-R)
    b_r, b_0    the second backbone with and without returns (DM+R, DM)

the effects, in normalized points, are

    backbone     ((b_r + b_0) - (a_r + a_0)) / 2
    returns      ((a_r + b_r) - (a_0 + b_0)) / 2
    interaction  (b_r - b_0) - (a_r - a_0)

Over several data sets an effect is the mean of its values on each. The strata of the bootstrap are data set x cell
(`dmray.reporting.aggregates.contrast`): data sets and cells are taken as given, seeds are drawn. Cells are those of one
`ProtocolResults`, so never of several protocols, contents of the data, simulators or codes. A data set on which a seed
of a cell has no final score has no effects; it is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np

from dmray.fields import Field
from dmray.methods import METHODS, Method
from dmray.models.backbones import BACKBONES
from dmray.reporting.across import ProtocolResults
from dmray.reporting.aggregates import Estimate, contrast
from dmray.reporting.results import UNSCORED, Comparison, SeedGroup

EFFECTS = ("backbone", "returns", "interaction")
_WEIGHTS = {  # of the cells in the order of `Square.methods`
    "backbone": (-0.5, -0.5, 0.5, 0.5),
    "returns": (0.5, -0.5, 0.5, -0.5),
    "interaction": (-1.0, 1.0, 1.0, -1.0),
}
MEAN = "mean"


class Square(NamedTuple):
    """Four methods by name: the first backbone with and without returns, then the second one."""

    backbones: tuple[str, str]
    methods: tuple[str, str, str, str]


@dataclass(frozen=True)
class Cells:
    """A square's cells on one data set, and the controls beside them: each with the cells that it is compared with."""

    comparison: Comparison
    groups: tuple[SeedGroup, SeedGroup, SeedGroup, SeedGroup]
    controls: tuple[tuple[SeedGroup, SeedGroup], ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """What lacks a final score: "DT-R (seed 2: diverged)"."""
        return tuple(lack for group in self.groups if (lack := _lack(group)))

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(group.label for group in self.groups)


class EffectsRow(NamedTuple):
    """The effects by name on a data set, or the mean over several, and the fewest seeds of a cell."""

    name: str
    effects: Mapping[str, Estimate]
    seeds: int


@dataclass(frozen=True)
class Factorial:
    """One square with one setting. `cells`: of the data sets where every cell is complete. `missing`: of the others."""

    name: str  # of the protocol
    square: Square
    labels: tuple[str, ...]
    cells: tuple[Cells, ...]
    missing: tuple[str, ...]

    @cached_property
    def rows(self) -> tuple[EffectsRow, ...]:
        """The effects on each complete data set, then their mean if there are several."""
        each = tuple(_effects(cells.comparison.name, [cells]) for cells in self.cells)
        return (*each, _effects(f"{MEAN} of {len(each)} data sets", self.cells)) if len(each) > 1 else each

    @property
    def overall(self) -> Mapping[str, Estimate]:
        """The effects over all complete data sets, of which there is at least one."""
        return self.rows[-1].effects

    @property
    def controls(self) -> dict[tuple[str, str], list[tuple[Cells, SeedGroup, SeedGroup]]]:
        """The complete controls with the cells that they are compared with, by their labels."""
        found: dict[tuple[str, str], list[tuple[Cells, SeedGroup, SeedGroup]]] = {}
        for each in self.cells:
            for control, cell in each.controls:
                if not _lack(control):
                    found.setdefault((control.label, cell.label), []).append((each, control, cell))
        return found


class FactorialResults(NamedTuple):
    """The squares of one protocol, and sentences about what there is no square for."""

    group: ProtocolResults
    factorials: tuple[Factorial, ...]
    missing: tuple[str, ...]


def squares(methods: Iterable[Method]) -> list[Square]:
    """All squares of these methods: two backbones, with and without the return token, all else in the layout equal."""
    layouts: dict[Any, dict[str, dict[bool, list[str]]]] = {}
    for method in methods:
        backbones = layouts.setdefault(_layout_without_returns(method), {})
        backbones.setdefault(method.backbone.name, {}).setdefault(method.takes_target, []).append(method.name)
    order = {name: place for place, name in enumerate(BACKBONES)}
    found = []
    for backbones in layouts.values():
        whole = sorted(
            (name for name in backbones if len(backbones[name]) == 2), key=lambda n: order.get(n, len(order))
        )
        for first, second in combinations(whole, 2):
            cells = [backbones[name][returns] for name in (first, second) for returns in (True, False)]
            found += [Square((first, second), (a, b, c, d)) for a, b, c, d in product(*cells)]
    return found


def factorials(groups: Iterable[ProtocolResults]) -> list[FactorialResults]:
    """The 2 x 2 tables of each protocol that has at least three cells of one; of what is missing the names."""
    known = squares(METHODS.values())
    found = []
    for group in groups:
        present = {seed_group.method for comparison in group.comparisons for seed_group in comparison.seed_groups}
        made: list[Factorial] = []
        missing: list[str] = []
        for square in known:
            lacking = [METHODS[name].label for name in square.methods if name not in present]
            if not lacking:
                tables, problems = _of_square(group, square)
                made, missing = made + tables, missing + problems
            elif len(lacking) == 1:
                others = ", ".join(METHODS[name].label for name in square.methods if name in present)
                missing.append(f"No effects from {others}: the fourth cell, {lacking[0]}, was not run.")
        if made or missing:
            found.append(FactorialResults(group, tuple(made), tuple(missing)))
    return found


def _layout_without_returns(method: Method) -> tuple[Any, ...]:
    return tuple(
        (
            tuple(token for token in stage.tokens if token.field is not Field.RETURN_TO_GO),
            stage.tokens[stage.read_at],
            stage.target,
            stage.squash,
        )
        for stage in method.stages
    )


def _of_square(group: ProtocolResults, square: Square) -> tuple[list[Factorial], list[str]]:
    """The square's tables, one for each setting that all four cells have, and what there is no table for."""
    by_labels: dict[tuple[str, ...], list[Cells]] = {}
    problems = []
    for comparison in group.comparisons:
        matched = list(_matched(comparison, square))
        for cells in matched:
            by_labels.setdefault(cells.labels, []).append(cells)
        used = {label for cells in matched for label in cells.labels}
        alone = [each.label for each in comparison.seed_groups if each.method in square.methods]
        alone = [label for label in alone if label not in used]
        if alone:
            why = "another cell was not run with their settings (model, training and evaluation must be equal)"
            problems.append(f"{comparison.name}: in no 2 x 2 are {', '.join(alone)}, because {why}.")
    tables = []
    for labels, found in by_labels.items():
        complete = tuple(cells for cells in found if not cells.missing)
        missing = [f"{cells.comparison.name}: {', '.join(cells.missing)}" for cells in found if cells.missing]
        tables.append(Factorial(group.name, square, labels, complete, tuple(missing)))
    return tables, problems


def _matched(comparison: Comparison, square: Square) -> Iterator[Cells]:
    """The cells of equal settings on a data set."""
    with_first, without_first, with_second, without_second = (
        [each for each in comparison.seed_groups if each.method == name] for name in square.methods
    )
    first = [(a, b) for a, b in product(with_first, without_first) if _agree(a, b)]
    second = [(a, b) for a, b in product(with_second, without_second) if _agree(a, b)]
    for (a, b), (c, d) in product(first, second):
        if _agree(a, c):
            cells = (a, b, c, d)
            yield Cells(comparison, cells, tuple(_controls(comparison, square, cells)))


def _controls(
    comparison: Comparison, square: Square, cells: Sequence[SeedGroup]
) -> Iterator[tuple[SeedGroup, SeedGroup]]:
    """Methods outside the square that have no other tokens than its cells, with the cells nearest to each.

    Nearest: of the cells that use returns if and only if the control does, its baselines in the registry; all of them
    if none is a baseline.
    """
    tokens = {token for name in square.methods for stage in METHODS[name].stages for token in stage.tokens}
    for group in comparison.seed_groups:
        method = METHODS[group.method]
        if group.method in square.methods or any(set(stage.tokens) - tokens for stage in method.stages):
            continue
        alike = [
            cell for cell in cells if METHODS[cell.method].takes_target == method.takes_target and _agree(group, cell)
        ]
        nearest = [cell for cell in alike if cell.method in method.baselines] or alike
        yield from ((group, cell) for cell in nearest)


def _agree(one: SeedGroup, other: SeedGroup) -> bool:
    """Whether two rows have equal settings in all fields that both of them use."""
    ours, theirs = _settings(one), _settings(other)
    return all(ours[field] == theirs[field] for field in ours.keys() & theirs.keys())


def _settings(group: SeedGroup) -> dict[str, Any]:
    trial = group.trials[0].trial
    return {**trial.model.model_dump(), **trial.used_training, **trial.used_evaluation}


def _lack(group: SeedGroup) -> str:
    """Why a cell is incomplete; empty if it is not."""
    scored = {id(trial) for trial in group.scored}
    if len(scored) == len(group.trials):
        return ""
    without = [trial for trial in group.trials if trial.last is None]
    if not without:  # finished, but their mean would be biased
        return f"{group.label} (seeds may still be stopped early)"
    by_status = [(status, [str(each.trial.seed) for each in without if each.status is status]) for status in UNSCORED]
    said = [f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}: {status.label}" for status, seeds in by_status if seeds]
    return f"{group.label} ({'; '.join(said)})"


def last_scores(group: SeedGroup) -> np.ndarray:
    """Of the seeds that have one, (seeds,)."""
    return np.array([trial.last.normalized for trial in group.scored if trial.last])


def control_difference(chosen: Sequence[tuple[Cells, SeedGroup, SeedGroup]]) -> Estimate:
    """The mean over data sets of a control's score minus that of a cell; `chosen` has both for each data set."""
    strata = [last_scores(group) for _, *pair in chosen for group in pair]
    return contrast(strata, np.tile((1.0, -1.0), len(chosen)) / len(chosen))


def _effects(name: str, cells: Sequence[Cells]) -> EffectsRow:
    """Over these data sets."""
    strata = [last_scores(group) for each in cells for group in each.groups]
    effects = {
        effect: contrast(strata, np.tile(weights, len(cells)) / len(cells)) for effect, weights in _WEIGHTS.items()
    }
    return EffectsRow(name, effects, min(map(len, strata)))
