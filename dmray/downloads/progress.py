"""Progress of a download: a bar on a terminal, nothing for tests and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

Progress = Callable[[str, int, int | None], None]  # the file's name, bytes received, bytes in total (if known)


def silent(name: str, done: int, total: int | None) -> None:
    """Show nothing."""


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """A bar on `console` while the context lasts; if that is not a terminal, only the end is shown."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console, transient=True) as bars:
        tasks = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield show
