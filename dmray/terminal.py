"""Output for any terminal: without escape codes of other people, in ASCII where it must be, at any width."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dmray.escaping import ASCII_ERRORS, ascii_text, one_line, plain

LOG_TIME = "%Y-%m-%d %H:%M:%S"
_PIPE_COLUMNS = 200  # for output into a file or a pipe; rich's default of 80 would cut names
_ANY_COLUMNS = 10_000


class SafeConsole(Console):
    """A console that drops control characters of the text it is given, and writes ASCII where it must."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        only_ascii = (options or self.options).ascii_only
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                text = plain(segment.text)
                yield Segment(ascii_text(text) if only_ascii else text, segment.style)


def folded(parts: Sequence[str], width: int, indent: str = "") -> list[str]:
    """`parts` with commas between them, in lines of at most `width`: a line ends between two parts, never in one."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}, {part}" if lines else ""
        if lines and len(longer) < width:  # one column is left for the comma
            lines[-1] = longer
        else:
            lines = [*lines[:-1], f"{lines[-1]},"] if lines else []
            lines.append(indent + part)
    return lines


class FittingTable(Table):
    """A table that is printed row by row, one cell a line, where the terminal is too narrow for its columns."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fits = self.fits(console, options)
        return super().__rich_console__(console, options) if fits else self._stacked()

    def fits(self, console: Console, options: ConsoleOptions) -> bool:
        """Whether it is printed as a table there."""
        self._make_cells_safe(options.ascii_only)
        return self._needed_columns(console, options) <= options.max_width

    def _needed_columns(self, console: Console, options: ConsoleOptions) -> int:
        """The width at which nothing is cut off; rich's own measure lets every column wrap."""
        wide = options.update(width=_ANY_COLUMNS)
        measured = [(column, self._measure_column(console, wide, column)) for column in self.columns]
        return self._extra_width + sum(width.maximum if column.no_wrap else width.minimum for column, width in measured)

    def _make_cells_safe(self, only_ascii: bool) -> None:
        """Before the widths are measured: a sign and its words in ASCII differ in width."""
        for column in self.columns:
            column.header = _safe(column.header, only_ascii)
            column._cells = [_safe(cell, only_ascii) for cell in column.cells]

    def _stacked(self) -> Iterable[RenderableType]:
        if self.title:
            yield self.title if not isinstance(self.title, str) else Text(self.title)
        heads = [_line_of(column.header) for column in self.columns]
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            shown = [(head, cell) for head, cell in zip(heads, cells, strict=True) if str(cell)]
            for place, (head, cell) in enumerate(shown):
                before = "" if place == 0 else "  "
                yield Text.assemble(before, f"{head}: " if head else "", _text_of(cell), overflow="fold")


def safe_console(*, stderr: bool = False) -> SafeConsole:
    """A console on standard output or error; wide if the output is a file or a pipe, unless $COLUMNS is set."""
    stream = sys.stderr if stderr else sys.stdout
    wide = not stderr and not stream.isatty() and "COLUMNS" not in os.environ
    return SafeConsole(stderr=stderr, emoji=False, width=_PIPE_COLUMNS if wide else None)


def accept_all_text(*streams: IO[str]) -> None:
    """Let streams whose encoding lacks a letter (LC_ALL=C, PYTHONIOENCODING=ascii) write it in ASCII."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)  # a stream of a test or of a notebook has none
        if reconfigure is not None:
            reconfigure(errors=ASCII_ERRORS)


class PlainFormatter(logging.Formatter):
    """Formats log records without escape codes and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


class LineFormatter(PlainFormatter):
    """One line a record, with its time as in `log.txt`, and its level from warnings on. A traceback follows."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", LOG_TIME)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        record.message = level + one_line(record.message)
        return super().formatMessage(record)


def _safe(cell: RenderableType, only_ascii: bool) -> RenderableType:
    if isinstance(cell, str):
        return ascii_text(plain(cell)) if only_ascii else plain(cell)
    if not isinstance(cell, Text):
        return cell
    text = ascii_text(plain(cell.plain)) if only_ascii else plain(cell.plain)
    return cell if text == cell.plain else Text(text, style=cell.style)


def _line_of(header: RenderableType) -> str:
    return " ".join(str(header).split())


def _text_of(cell: Any) -> Text:
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell))
