"""The section "Rewards x backbone" of a report: its tables, its sentences and its CSV columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from dmray.reporting.aggregates import FEWEST_SEEDS, Estimate
from dmray.reporting.document import Block, Bullets, Heading, Image, Paragraph, Table, TableCell
from dmray.reporting.factorial import EFFECTS, MEAN, Factorial, FactorialResults, control_difference, last_scores
from dmray.reporting.results import SeedGroup

TITLE = "Rewards x backbone"


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
            names = [*(cells.comparison.name for cells in table.cells), MEAN]
            for name, row in zip(names, table.rows, strict=False):
                rows += [_row(table, name, effect, row.effects[effect]) for effect in EFFECTS]
            for (control, cell), found in table.controls.items():
                of_all = [(MEAN, found)] if len(found) > 1 else []
                for name, chosen in [*((one[0].comparison.name, [one]) for one in found), *of_all]:
                    rows.append(_row(table, name, f"{control} minus {cell}", control_difference(chosen)))
    return pa.Table.from_pylist(rows) if rows else pa.table({"protocol": pa.array([], pa.string())})


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
    scores = last_scores(group)
    return f"{scores.mean():z.1f} ± {scores.std(ddof=1):z.1f}" if len(scores) > 1 else f"{scores.mean():z.1f}"


def _controls_table(table: Factorial, place: int) -> Table:
    pairs = list(table.controls)
    rows = []
    for each in table.cells:
        found = {pair: [one for one in table.controls[pair] if one[0] is each] for pair in pairs}
        texts = [_effect_text(control_difference(chosen)) if chosen else "-" for chosen in found.values()]
        rows.append((TableCell(each.comparison.name), *map(TableCell, texts)))
    if len(table.cells) > 1:
        texts = [_effect_text(control_difference(chosen)) for chosen in table.controls.values()]
        rows.append((TableCell(f"{MEAN} of the data sets that have both"), *map(TableCell, texts)))
    return Table(
        f"Controls: difference to the nearest cells, [95 % interval] ({table.name})",
        ("data set", *(f"{control} minus {cell}" for control, cell in pairs)),
        tuple(rows),
        name=f"factorial-controls-{_slug(table, place)}",
    )


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
