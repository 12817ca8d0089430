"""Results that others published, as rows of the report beside ours: from CSV files, with the protocol of each number.

`published/*.csv` come with dmray; a user's own table is read in the same format (docs/report.md). A published score is
a `Decimal`: it is printed with the digits of its source, and it is in no mean, interval, test or figure.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from dmray.errors import SpecError
from dmray.registry import short, short_repr, unknown
from dmray.reporting.document import Block, Heading, Links, Paragraph, Table, TableCell
from dmray.reporting.results import Comparison, SweepResults
from dmray.tasks import DATASETS, entry_of

SCALES = ("normalized", "return")
SELECTIONS = ("last", "best", "mean of last", "unknown")
_OPTIONAL = ("std", "seeds", "episodes", "steps", "note")  # cells that may be empty: the source does not say
_NUMBER = re.compile(r"[-+]?[0-9]{1,12}(\.[0-9]{1,12})?")
_WHOLE = re.compile(r"[0-9]{1,10}")
_ADDRESS = re.compile(r"https?://[^\s/]+\.[^\s/]+(/\S*)?")
_MOST_BYTES = 2**22
_LONGEST = 1000  # characters of a cell
_NOTHING = "-"


@dataclass(frozen=True)
class PublishedResult:
    """One published number and its protocol. The fields are the columns of the CSV file, in this order.

    `source`: a short name, such as "CORL"; `url`: where the number stands. `method`: as the source calls it.
    `score`, `std`: as they are printed there, on the scale `scale`: D4RL's normalized score, or the raw return.
    `selection`: of which weights the score is ("best": the highest score in training). `seeds`, `episodes`, `steps`
    (of the optimizer): None if the source does not say. `note`: what else differs from a run of dmray.
    """

    source: str
    url: str
    method: str
    dataset: str
    score: Decimal
    std: Decimal | None
    scale: str
    selection: str
    seeds: int | None
    episodes: int | None
    steps: int | None
    note: str

    @property
    def text(self) -> str:
        return str(self.score) if self.std is None else f"{self.score} ± {self.std}"

    @property
    def same(self) -> tuple[str, ...]:
        """What is equal only in rows that claim to be the same number."""
        return self.source, self.method, self.dataset, self.scale, self.selection


def read_published(path: Path, own_datasets: Collection[str] = ()) -> tuple[PublishedResult, ...]:
    """The rows of a CSV file of published results. `own_datasets`: data sets that it may name beside the catalog's.

    Raises:
        SpecError: the file cannot be read; a column is missing, unknown or there twice; a cell has no valid value; or
            two rows are the same number. The message names the file, the line, the column, the value and the cure.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as cause:
        raise SpecError(f"{path}: cannot be read: {cause.strerror or cause}; give a CSV file") from cause
    if len(content) > _MOST_BYTES:
        raise SpecError(f"{path}: is larger than {_MOST_BYTES // 2**20} MiB; give only the rows that are wanted")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = content[: cause.start].count(b"\n") + 1
        raise SpecError(f"{path}, line {line}: is not UTF-8 text; save the table as CSV in UTF-8") from cause
    return _rows(str(path), text, own_datasets)


@cache
def shipped() -> tuple[PublishedResult, ...]:
    """The published results that come with dmray."""
    folder = files("dmray.reporting") / "published"
    tables = sorted((each for each in folder.iterdir() if each.name.endswith(".csv")), key=lambda each: each.name)
    return tuple(row for table in tables for row in _rows(table.name, table.read_text(encoding="utf-8")))


def references_of(results: SweepResults, paths: Sequence[Path] = ()) -> tuple[PublishedResult, ...]:
    """dmray's published results and those of the files `paths` that belong to the data sets of `results`.

    Raises:
        SpecError: as `read_published`, or no row of a file belongs to a data set of `results`.
    """
    own = {each.dataset.name for each in results.comparisons}
    found = [row for row in shipped() if any(_belongs(row, each) for each in results.comparisons)]
    for path in paths:
        rows = read_published(path, own)
        matching = [row for row in rows if any(_belongs(row, each) for each in results.comparisons)]
        if not matching:
            named, ours = (", ".join(sorted(set(names))[:5]) for names in ((row.dataset for row in rows), own))
            raise SpecError(
                f"{path}: no row belongs to a data set of this report: the rows are for {named or 'none'}, the report "
                f"has {ours or 'none'} (a name of the catalog stands for the whole published data, without noise)"
            )
        found += matching
    return tuple(dict.fromkeys(found))


def reference_table(comparison: Comparison, references: Sequence[PublishedResult]) -> Table | None:
    """The published results on the data set of `comparison`; None without any."""
    rows = [row for row in references if _belongs(row, comparison)]
    if not rows:
        return None
    scales = [scale for scale in SCALES if any(row.scale == scale for row in rows)]
    heads = {"normalized": "normalized", "return": "raw return"}
    return Table(
        f"{comparison.dataset.name}: published by others, not run here",
        ("source and method", *(heads[scale] for scale in scales), "score", "seeds", "episodes", "training steps"),
        tuple(
            (
                TableCell(f"{row.source}: {row.method}"),
                *(TableCell(row.text if row.scale == scale else _NOTHING) for scale in scales),
                TableCell(row.selection),
                *(TableCell(_NOTHING if n is None else f"{n:,}") for n in (row.seeds, row.episodes, row.steps)),
            )
            for row in rows
        ),
        note="Numbers as the sources print them, in no mean, interval or test of this report. The section "
        '"Published results" has the sources.',
        name=f"published-{comparison.dataset.name}",
    )


def reference_blocks(references: Sequence[PublishedResult]) -> Iterable[Block]:
    """The section on the sources of all published results of a report; empty without any."""
    if not references:
        return
    yield Heading("Published results", 2)
    yield Paragraph(
        'The tables with the title "published by others, not run here" are copied from these sources. Their scores '
        "are of other code and other releases of the simulators, so only large differences to ours mean something. "
        "Compare last only with last, and best only with best: best is chosen by looking at the evaluations."
    )
    sources: dict[tuple[str, str], list[PublishedResult]] = {}
    for row in references:
        sources.setdefault((row.source, row.url), []).append(row)
    yield Links(tuple((source, url, _protocol(rows)) for (source, url), rows in sources.items()))


def _protocol(rows: Sequence[PublishedResult]) -> str:
    """What follows the name of a source; a note that is only for some of its rows names their data sets."""
    families: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.note:
            families.setdefault(row.note, {})[row.dataset] = None
    everywhere = {row.dataset for row in rows}
    notes = [
        note if set(datasets) == everywhere else f"{', '.join(datasets)}: {note}" for note, datasets in families.items()
    ]
    facts = [
        f"{_listed(row.method for row in rows)}",
        f"scale: {_listed(row.scale for row in rows)}",
        f"score: {_listed(row.selection for row in rows)}",
        f"seeds: {_listed(row.seeds for row in rows)}",
        f"episodes of an evaluation: {_listed(row.episodes for row in rows)}",
    ]
    return f": {'; '.join([*facts, *notes])}."


def _listed(values: Iterable[object]) -> str:
    return ", ".join("not said" if value is None else str(value) for value in dict.fromkeys(values))


def _belongs(row: PublishedResult, comparison: Comparison) -> bool:
    """Whether it is for this data set. A name of the catalog stands for the published data, whole, without noise."""
    dataset, protocol = comparison.dataset, comparison.protocol
    if row.dataset not in DATASETS:
        return row.dataset == dataset.name
    as_published = dataset.path is None and dataset.generate is None and dataset.fraction == 1
    noisy = protocol.action_noise or protocol.observation_noise
    return row.dataset == dataset.catalog_name and as_published and not noisy


def _rows(name: str, text: str, own_datasets: Collection[str] = ()) -> tuple[PublishedResult, ...]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: dict[tuple[str, ...], int] = {}
    rows = []
    try:
        head = next((cells for cells in lines if any(cell.strip() for cell in cells)), [])
        columns = _header(name, max(1, lines.line_num), head)
        for cells in lines:
            place = f"{name}, line {lines.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise SpecError(
                    f"{place}: has {len(cells)} cells, the header has {len(columns)}; put text with commas in quotes"
                )
            row = _row(place, dict(zip(columns, map(str.strip, cells), strict=True)), own_datasets)
            if (first := found.setdefault(row.same, lines.line_num)) != lines.line_num:
                raise SpecError(
                    f"{place}: is the same number as line {first} ({', '.join(map(short, row.same))}); delete one, or "
                    "give the sources different names"
                )
            rows.append(row)
    except csv.Error as cause:
        raise SpecError(f"{name}, line {lines.line_num}: is not CSV: {cause}; check its quotes") from cause
    return tuple(rows)


def _header(name: str, line: int, cells: Sequence[str]) -> list[str]:
    columns = [cell.strip() for cell in cells]
    place = f"{name}, line {line}"
    if len(columns) == 1 and columns[0] and (separator := next((each for each in ";\t" if each in columns[0]), "")):
        said = "semicolons" if separator == ";" else "tabs"
        raise SpecError(f"{place}: its cells are separated by {said}; save the table as CSV with commas")
    for column in columns:
        if column not in _READ:
            problem = unknown("column", column, _READ) if column else "a column has no name; name it, or delete it"
            raise SpecError(f"{place}: {problem}")
        if columns.count(column) > 1:
            raise SpecError(f"{place}: column '{column}' is there twice; delete one")
    for column in _READ:
        if column not in columns and column not in _OPTIONAL:
            raise SpecError(f"{place}: column '{column}' is missing; the columns are {', '.join(_READ)}")
    return columns


def _row(place: str, cells: dict[str, str], own_datasets: Collection[str]) -> PublishedResult:
    values: dict[str, Any] = {}
    for column, read in _READ.items():
        text = cells.get(column, "")
        try:
            if text:
                if len(text) > _LONGEST or not text.isprintable():
                    raise ValueError(f"must be at most {_LONGEST:,} characters on one line that can be printed")
                values[column] = read(text)
            elif column in _OPTIONAL:
                values[column] = "" if column == "note" else None
            else:
                raise ValueError("is empty; every row needs it")
        except ValueError as refused:
            raise SpecError(f"{place}, column {column}: {short_repr(text)}: {refused}") from None
    if values["dataset"] not in own_datasets:
        try:
            entry_of(values["dataset"])
        except SpecError as cause:
            raise SpecError(f"{place}, column dataset: {cause}") from None
    return PublishedResult(**values)


def _number(text: str) -> Decimal:
    if not _NUMBER.fullmatch(text):
        raise ValueError("must be a number such as 42.2, with a point and without separators of thousands")
    return Decimal(text)


def _deviation(text: str) -> Decimal:
    number = _number(text)
    if number < 0:
        raise ValueError("a standard deviation must be at least 0")
    return number


def _count(text: str) -> int:
    if not _WHOLE.fullmatch(text) or int(text) == 0:
        raise ValueError("must be a whole number of at least 1, or empty if the source does not say it")
    return int(text)


def _address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError("must be an address such as https://arxiv.org/abs/2403.19925")
    return text


def _one_of(kind: str, choices: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(unknown(kind, text, choices))
        return text

    return read


_READ: dict[str, Callable[[str], Any]] = {
    "source": str,
    "url": _address,
    "method": str,
    "dataset": str,
    "score": _number,
    "std": _deviation,
    "scale": _one_of("scale", SCALES),
    "selection": _one_of("selection", SELECTIONS),
    "seeds": _count,
    "episodes": _count,
    "steps": _count,
    "note": str,
}
assert list(_READ) == [field.name for field in fields(PublishedResult)]
