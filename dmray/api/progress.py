"""Show how far a call is: on a terminal, in a notebook, or by a function of the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dmray.arguments import flag
from dmray.driver.progress_bar import NotebookBar, in_notebook
from dmray.progress.summary import Summary
from dmray.terminal import safe_console

if TYPE_CHECKING:
    pass


def check_progress(progress: object) -> None:
    if not callable(progress):
        flag("progress", progress)


@contextmanager
def sweep_progress(progress: bool | Callable[[Summary], None], console: Console | None) -> Iterator[dict[str, Any]]:
    """Yield the arguments of `session.run_sweep` that show the progress."""
    if callable(progress):
        yield {"on_progress": progress}
    elif progress and console is None and in_notebook():
        yield {"on_progress": NotebookBar().show_sweep}
    else:
        yield {"console": (console or safe_console(stderr=True)) if progress else None}


@contextmanager
def episode_bar(
    progress: bool | Callable[[int, int], None], task: str, what: str = "episodes"
) -> Iterator[Callable[[int, int], None] | None]:
    """Yield the function to call with the numbers of finished and of all episodes; None: no progress is shown."""
    if callable(progress):
        yield progress
    elif not progress:
        yield None
    elif in_notebook():
        bar = NotebookBar()
        yield lambda done, total: bar.show(done, total, f"{done}/{total} {what} of {task}")
    else:
        from rich.progress import Progress

        with Progress(console=safe_console(stderr=True), transient=True) as shown:
            row = shown.add_task(f"{what} of {task}", total=None)
            yield lambda done, total: shown.update(row, completed=done, total=total)
