"""Functions that all command lines use: arguments, consoles, and errors as one red line and exit status 1."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape, glob
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import typer
from rich.logging import RichHandler

from dmray.errors import DmrayError, StorageError, StoreUnavailableError
from dmray.redaction import SecretFilter, without_secrets
from dmray.registry import short
from dmray.shipped import shipped_sweeps
from dmray.terminal import LineFormatter, PlainFormatter, accept_all_text, safe_console

SweepSource = Annotated[
    str, typer.Argument(help="A sweep file, or a sweep's folder or URL: runs/quickstart, s3://bucket/runs/quickstart.")
]
SweepStorage = Annotated[str | None, typer.Option(help="With a sweep file: the --storage given to dmray.sweep.")]
CONTINUE_WITH = "DMRAY_CONTINUE_WITH"  # of a submitted job: the command that continues its sweep
out = safe_console()
err = safe_console(stderr=True)


def new_app(no_args_is_help: bool = True) -> typer.Typer:
    """A typer application that prints its help if it gets no arguments, or runs without them.

    Its output is in ASCII where the terminal can show nothing else.
    """
    accept_all_text(sys.stdout, sys.stderr)
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=no_args_is_help)


def sweep_files(incomplete: str) -> list[str]:
    """What the shell completes a sweep file with: the names of dmray's, and the files here."""
    names = [name for name in shipped_sweeps() if name.startswith(incomplete)]
    return [*names, *sorted(glob(f"{escape(incomplete)}*.yaml"))]


def log_to_stderr() -> None:
    """Show what dmray logs, without passwords: on a terminal in colour; elsewhere one line a message, with its time."""
    handler: logging.Handler
    if err.is_terminal:
        handler = RichHandler(console=err, show_path=False, show_time=False)
        handler.setFormatter(PlainFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(LineFormatter())
    handler.addFilter(SecretFilter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("dmray").setLevel(logging.INFO)


def finite_number(text: str) -> float:
    """Parse the value of an option; the parser of options that take any number.

    Raises:
        typer.BadParameter: it is not a finite number.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise typer.BadParameter(f"'{short(text)}' is not a finite number")
    return number


@contextmanager
def report_errors() -> Iterator[None]:
    """Print a `DmrayError` in one red line.

    Raises:
        typer.Exit: the block raised a `DmrayError`; the exit status is 1.
    """
    try:
        yield
    except DmrayError as mistake:
        print_error(mistake)
        raise typer.Exit(1) from None


def print_error(mistake: DmrayError) -> None:
    """Print an error in one red line."""
    err.print("error:", without_secrets(str(mistake)), style="bold red", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def tolerate_outages() -> Iterator[None]:
    """Print the error if the object store does not answer, and continue; the caller must try again."""
    try:
        yield
    except StoreUnavailableError as problem:
        err.print(
            without_secrets(f"{problem}; trying again"), style="yellow", highlight=False, markup=False, soft_wrap=True
        )


def check_writable(path: Path, option: str) -> None:
    """Check that a file can be written at `path`, before hours of computing its content.

    Raises:
        StorageError: the file cannot be written, or `path` is a folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as cause:
        raise StorageError(f"{option} {path}: cannot be written: {cause.strerror}; give another path") from cause
    if path.is_dir():
        raise StorageError(f"{option} {path}: is a folder; give a file in it")
