"""The results of a sweep as tables in a terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from dmray.escaping import one_line
from dmray.records import SweepFolder
from dmray.reporting.across import results_by_protocol
from dmray.reporting.document import Table
from dmray.reporting.factorial import factorials
from dmray.reporting.factorial_view import effects_list, sentences
from dmray.reporting.notes import notes_on_data, warnings_of
from dmray.reporting.reevaluations import reevaluation_table
from dmray.reporting.results import SweepResults, collect
from dmray.reporting.tables import IQM, MISSING, NOTHING, RAW, last_few, leader_text, leads, score_table
from dmray.terminal import FittingTable


def render_summary(folder: SweepFolder) -> Group:
    """Read the results of the sweep in `folder` and make their tables.

    Raises:
        StorageError: there is no sweep in the folder, or a file of it is damaged.
    """
    return render_results(collect(folder))


def render_results(results: SweepResults) -> Group:
    """Warnings and notes on the data; one score table per data set, and a sentence about the leading method."""
    return Group(*_parts(results))


def _parts(results: SweepResults) -> Iterable[RenderableType]:
    for warning in warnings_of(results):
        yield Text(f"{one_line(warning)}\n", style="yellow")
    for dataset, notes in notes_on_data(results).items():
        yield Text("\n".join(f"{dataset}: {one_line(note)}" for note in notes) + "\n")
    for comparison in results.comparisons:
        yield _ScoreTable(score_table(comparison), {IQM, last_few(comparison)})
        yield Text(leader_text(comparison), style="bold")
        yield from (Text(outlook) for each in leads(comparison) if (outlook := each.outlook()))
        yield Text("last: the final weights, the main result; best: the highest during training\n", style="dim")
    for made in factorials(results_by_protocol(results.comparisons)):
        for table in made.factorials:
            if table.cells:
                yield _rich(effects_list(table), ())
                yield Text("\n".join(sentences(table)) + "\n")
    for comparison in results.reevaluated:
        yield _rich(reevaluation_table(comparison), ())


@dataclass(frozen=True)
class _ScoreTable:
    """A table of scores. A terminal that is too narrow for it gets it without raw returns, with a word about that.

    If that does not fit either, all of it is printed, one cell a line.
    """

    table: Table
    left_out: Collection[str | None]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        drawn, narrow = _rich(self.table, self.left_out), _rich(self.table, {*self.left_out, RAW})
        if drawn.fits(console, options) or not narrow.fits(console, options):
            yield drawn
        else:
            yield narrow
            yield Text("raw returns are in the report, and here if the terminal is wider", style="dim")


def _rich(table: Table, left_out: Collection[str | None]) -> FittingTable:
    """Convert a table for the terminal, without empty columns and without those that are left out."""
    drawn = FittingTable(title=table.title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)
    wanted = [
        place
        for place, name in enumerate(table.columns)
        if name not in left_out and any(row[place].text != NOTHING for row in table.rows)
    ]
    for place in wanted:
        number = place > 0 and table.columns[place] != MISSING
        head = table.columns[place].replace(", ", "\n")
        drawn.add_column(head, justify="right" if number else "left", no_wrap=number)
    for row in table.rows:
        cells = [row[place] for place in wanted]
        drawn.add_row(*(Text(one_line(cell.text), style="bold green" if cell.strong else "") for cell in cells))
    return drawn
