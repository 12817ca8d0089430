"""How far a download is: a bar for people, nothing for tests and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

Progress = Callable[[str, int, int | None], None]  # the file's name, bytes that are here, bytes in all (if known)


def silent(name: str, done: int, total: int | None) -> None:
    """Show nothing."""


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """A bar on `console` while the context lasts; on no terminal nothing but the end is shown."""
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
