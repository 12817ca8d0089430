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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dmray.fields import Field
from dmray.methods import METHODS, Method
from dmray.models.backbones import BACKBONES
from dmray.reporting.across import ProtocolResults
from dmray.reporting.aggregates import FEWEST_SEEDS, Estimate, contrast
from dmray.reporting.document import Block, Bullets, Heading, Image, Paragraph, Table, TableCell
from dmray.reporting.results import UNSCORED, Comparison, SeedGroup

TITLE = "Rewards x backbone"
EFFECTS = ("backbone", "returns", "interaction")
_WEIGHTS = {  # of the cells in the order of `Square.methods`
    "backbone": (-0.5, -0.5, 0.5, 0.5),
    "returns": (0.5, -0.5, 0.5, -0.5),
    "interaction": (-1.0, 1.0, 1.0, -1.0),
}
_MEAN = "mean"


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
        return (*each, _effects(f"{_MEAN} of {len(each)} data sets", self.cells)) if len(each) > 1 else each

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


def factorial_blocks(results: Sequence[FactorialResults], figures: Mapping[int, Path]) -> Iterable[Block]:
    """The section of a report; empty if no protocol has three cells of a 2 x 2.

    `figures`: of the effects, by the position of their table among all of `results`.
    """
    if not results:
        return
    yield Heading(TITLE, 2)
    place = -1
    for each in results:
        yield from (Paragraph(text) for text in each.missing)
        for table in each.factorials:
            place += 1
            if table.cells:
                yield _cells_table(table, place)
                yield effects_table(table, place)
                if place in figures:
                    yield Image(figures[place], f"effects of {', '.join(table.labels)}, {table.name}")
                yield Bullets(sentences(table))
                if table.controls:
                    yield _controls_table(table, place)
            if table.missing:
                yield Paragraph("No effects, because a cell is incomplete: " + "; ".join(table.missing) + ".")


def effects_table(table: Factorial, place: int = 0) -> Table:
    """The three effects on each complete data set, and their mean."""
    rows = [
        (
            TableCell(row.name),
            *(TableCell(_effect_text(row.effects[name])) for name in EFFECTS),
            TableCell(str(row.seeds)),
        )
        for row in table.rows
    ]
    first, second = table.square.backbones
    return Table(
        f"Effects on the last normalized score, [95 % interval]: {', '.join(table.labels)} ({table.name})",
        ("data set", f"backbone, {second} - {first}", "returns, with - without", "interaction", "seeds"),
        tuple(rows),
        note=(
            f"Interaction: the effect of returns with {second} minus that with {first}. Intervals: stratified "
            f"bootstrap of seeds (data set x cell), corrected for few seeds; none with fewer than {FEWEST_SEEDS} seeds "
            "in a cell. They are not corrected for the number of effects in this table."
        ),
        name=f"factorial-{_slug(table, place)}",
    )


def effects_list(table: Factorial) -> Table:
    """`effects_table` with a row for each effect, for terminals of 80 columns."""
    rows = [
        (TableCell(row.name if name == EFFECTS[0] else ""), TableCell(name), TableCell(_effect_text(row.effects[name])))
        for row in table.rows
        for name in EFFECTS
    ]
    return Table(f"{TITLE}: {', '.join(table.labels)} ({table.name})", ("data set", "effect", "[95 %]"), tuple(rows))


def sentences(table: Factorial) -> tuple[str, ...]:
    """One sentence for each effect that says no more than its interval does."""
    first, second = table.square.backbones
    whats = {
        "backbone": (f"the {second} cells are", f"above the {first} cells", f"below the {first} cells"),
        "returns": ("the cells with returns are", "above those without", "below those without"),
        "interaction": (
            f"with {second} the effect of returns is",
            f"larger than with {first}",
            f"smaller than with {first}",
        ),
    }
    effects = table.overall
    said = [f"{name.capitalize()}: {_sentence(effects[name], *whats[name])}" for name in EFFECTS]
    if _excludes_zero(effects["interaction"]):
        said.append(
            "The interval of the interaction excludes 0: a main effect is the mean of two unequal effects; read the "
            "cells."
        )
    names = ", ".join(each.comparison.name for each in table.cells)
    return (*said, f"These sentences are about the mean over {names}, with these settings and this number of steps.")


def factorial_columns(results: Sequence[FactorialResults]) -> pa.Table:
    """One row for each effect and each control on each data set and over all of them (`factorial.csv`)."""
    rows: list[dict[str, object]] = []
    for each in results:
        for table in each.factorials:
            names = [*(cells.comparison.name for cells in table.cells), _MEAN]
            for name, row in zip(names, table.rows, strict=False):
                rows += [_row(table, name, effect, row.effects[effect]) for effect in EFFECTS]
            for (control, cell), found in table.controls.items():
                of_all = [(_MEAN, found)] if len(found) > 1 else []
                for name, chosen in [*((one[0].comparison.name, [one]) for one in found), *of_all]:
                    rows.append(_row(table, name, f"{control} minus {cell}", _difference(chosen)))
    return pa.Table.from_pylist(rows) if rows else pa.table({"protocol": pa.array([], pa.string())})


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


def _scores(group: SeedGroup) -> np.ndarray:
    return np.array([trial.last.normalized for trial in group.scored if trial.last])


def _difference(chosen: Sequence[tuple[Cells, SeedGroup, SeedGroup]]) -> Estimate:
    strata = [_scores(group) for _, *pair in chosen for group in pair]
    return contrast(strata, np.tile((1.0, -1.0), len(chosen)) / len(chosen))


def _cells_table(table: Factorial, place: int) -> Table:
    controls = list(dict.fromkeys(control.label for each in table.cells for control, _ in each.controls))
    rows = []
    for each in table.cells:
        beside = {control.label: control for control, _ in each.controls}
        found = [*each.groups, *(beside.get(label) for label in controls)]
        rows.append((TableCell(each.comparison.name), *(TableCell(_mean_text(group)) for group in found)))
    return Table(
        f"Cells and controls: last normalized score, mean ± std over seeds ({table.name})",
        ("data set", *table.labels, *controls),
        tuple(rows),
        name=f"factorial-cells-{_slug(table, place)}",
    )


def _mean_text(group: SeedGroup | None) -> str:
    if group is None or not group.scored:
        return "-"
    scores = _scores(group)
    return f"{scores.mean():z.1f} ± {scores.std(ddof=1):z.1f}" if len(scores) > 1 else f"{scores.mean():z.1f}"


def _controls_table(table: Factorial, place: int) -> Table:
    pairs = list(table.controls)
    rows = []
    for each in table.cells:
        found = {pair: [one for one in table.controls[pair] if one[0] is each] for pair in pairs}
        texts = [_effect_text(_difference(chosen)) if chosen else "-" for chosen in found.values()]
        rows.append((TableCell(each.comparison.name), *map(TableCell, texts)))
    if len(table.cells) > 1:
        texts = [_effect_text(_difference(chosen)) for chosen in table.controls.values()]
        rows.append((TableCell(f"{_MEAN} of the data sets that have both"), *map(TableCell, texts)))
    return Table(
        f"Controls: difference to the nearest cells, [95 % interval] ({table.name})",
        ("data set", *(f"{control} minus {cell}" for control, cell in pairs)),
        tuple(rows),
        name=f"factorial-controls-{_slug(table, place)}",
    )


def _effects(name: str, cells: Sequence[Cells]) -> EffectsRow:
    """Over these data sets."""
    strata = [_scores(group) for each in cells for group in each.groups]
    effects = {
        effect: contrast(strata, np.tile(weights, len(cells)) / len(cells)) for effect, weights in _WEIGHTS.items()
    }
    return EffectsRow(name, effects, min(map(len, strata)))


def _effect_text(found: Estimate) -> str:
    if found.interval is None:
        return f"{found.value:+z.1f}"
    low, high = found.interval
    return f"{found.value:+z.1f} [{low:z.1f}, {high:z.1f}]"


def _sentence(found: Estimate, subject: str, above: str, below: str) -> str:
    said = f"{subject} {abs(found.value):z.1f} normalized points {above if found.value >= 0 else below}"
    if found.interval is None:
        return (
            f"{said}. There is no interval, because a cell has fewer than {FEWEST_SEEDS} seeds or no spread over "
            "seeds, so this says nothing about other seeds."
        )
    low, high = found.interval
    if _excludes_zero(found):
        return f"{said}; the 95 % interval, {low:z.1f} to {high:z.1f}, is {'above' if low > 0 else 'below'} 0."
    return (
        f"{said}, but the 95 % interval, {low:z.1f} to {high:z.1f}, includes 0: these seeds do not show an effect, and "
        "do not show that there is none."
    )


def _excludes_zero(found: Estimate) -> bool:
    return found.interval is not None and (found.interval[0] > 0 or found.interval[1] < 0)


def _row(table: Factorial, name: str, effect: str, found: Estimate) -> dict[str, object]:
    low, high = found.interval or (None, None)
    return {
        "protocol": table.name,
        "cells": ", ".join(table.labels),
        "dataset": name,
        "effect": effect,
        "value": found.value,
        "low": low,
        "high": high,
        "trials": found.runs,
    }


def _slug(table: Factorial, place: int) -> str:
    first, second = table.square.backbones
    return f"{first}-{second}" + (f"-{place + 1}" if place else "")
