"""Sweeps' folders with chosen scores, and tables as dictionaries."""

from __future__ import annotations

from typing import Any

from dmray.records import SweepFolder
from dmray.reporting import Comparison, collect
from dmray.reporting.document import Table
from tests.mlflow_mirror.examples import example_sweep, trials_of, whole_trial, write_ledger, write_manifest


def write(folder: SweepFolder, ledgers: dict[str, list[Any]], **changes: Any) -> None:
    """`ledgers`: by "method seed" or "method seed data set"; a list of numbers is a finished trial's scores."""
    sweep = example_sweep(**changes)
    write_manifest(folder, sweep)
    for trial in trials_of(sweep):
        key = f"{trial.method} {trial.seed}"
        records = ledgers.get(f"{key} {trial.dataset.name}", ledgers.get(key, []))
        scores = all(isinstance(record, int | float) for record in records)
        write_ledger(folder, trial, whole_trial(*records) if records and scores else records)


def comparison(folder: SweepFolder) -> Comparison:
    return collect(folder).comparisons[0]


def seed_groups(table: Table) -> dict[str, dict[str, str]]:
    return {
        row[0].text: dict(zip(table.columns, (seed_group.text for seed_group in row), strict=True))
        for row in table.rows
    }


def strong(table: Table) -> set[tuple[str, str]]:
    named = ((row[0].text, zip(table.columns, row, strict=True)) for row in table.rows)
    return {(name, column) for name, row in named for column, seed_group in row if seed_group.strong}
