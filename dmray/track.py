"""`python -m dmray.track replay SWEEP_DIR...`: what a sweep's folder holds into MLflow, at any time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from dmray.command_line import err, new_app, out, told
from dmray.execution.replay import replay as replay_sweep
from dmray.tracking import SweepFolder

app = new_app()


@app.callback()
def main() -> None:
    """What a sweep's folder holds, in MLflow."""


@app.command()
def replay(
    sweep_dirs: Annotated[
        list[Path], typer.Argument(metavar="SWEEP_DIR...", help="The folder of a sweep, for example runs/quickstart.")
    ],
    mlflow_uri: Annotated[
        str | None, typer.Option(help="Where to; else where the sweep meant to, or SQLite in its storage folder.")
    ] = None,
) -> None:
    """Fill MLflow in from ledgers: a sweep that ran without it, whose server was down, or for another server.

    What is there already stays as it is, so it may be run again, and after every new start of the sweep.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    complete = True
    for place in sweep_dirs:
        with told():
            path = place.expanduser().resolve()
            lag = replay_sweep(SweepFolder(path.parent, path.name), mlflow_uri)
        if lag.problem is None:
            out.print(f"{path}: all of it is in experiment dmray/{path.name}", highlight=False, soft_wrap=True)
        else:
            complete = False
            err.print(f"{path}: {lag.records} records are missing: {lag.problem}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if complete else 1)


if __name__ == "__main__":
    app()
