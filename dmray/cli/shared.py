"""What the command lines share: a user's mistake is one red sentence and exit status 1, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import typer
from rich.console import Console

from dmray.errors import DmrayError, StorageError, StoreUnavailableError

_PIPE_COLUMNS = 200  # a file or another program has no width; rich's 80 would cut names
SweepSource = Annotated[
    str, typer.Argument(help="The sweep's folder (runs/quickstart), URL (s3://bucket/prefix/quickstart) or file.")
]
SweepStorage = Annotated[str | None, typer.Option(help="For a sweep file: the --storage of its start.")]
out = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
err = Console(stderr=True)


def new_app() -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@contextmanager
def report_errors() -> Iterator[None]:
    """Print a `DmrayError` as one sentence.

    Raises:
        typer.Exit: there was one.
    """
    try:
        yield
    except DmrayError as mistake:
        err.print("error:", str(mistake), style="bold red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


@contextmanager
def tolerate_outages() -> Iterator[None]:
    """Print that a store does not answer, and go on: the caller tries again."""
    try:
        yield
    except StoreUnavailableError as problem:
        err.print(f"{problem}; trying again", style="yellow", highlight=False, markup=False, soft_wrap=True)


def check_writable(path: Path, option: str) -> None:
    """Check that a file can be written at `path`, before hours are spent on what it will hold.

    Raises:
        StorageError: it cannot be written, or `path` is a folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as cause:
        raise StorageError(f"{option} {path}: cannot be written: {cause.strerror}; name another place") from cause
    if path.is_dir():
        raise StorageError(f"{option} {path}: is a folder; name a file in it")
