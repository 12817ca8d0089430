"""`python -m dmray.track replay|champions SWEEP_DIR...`: what a sweep's folder holds into MLflow, at any time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from dmray.command_line import err, new_app, out, told
from dmray.execution.replay import Replayed
from dmray.execution.replay import replay as replay_sweep
from dmray.tracking import SweepFolder

app = new_app()

_SweepDirs = Annotated[
    list[Path], typer.Argument(metavar="SWEEP_DIR...", help="The folder of a sweep, for example runs/quickstart.")
]
_MlflowUri = Annotated[
    str | None, typer.Option(help="Where to; else where the sweep meant to, or SQLite in its storage folder.")
]


@app.callback()
def main() -> None:
    """What a sweep's folder holds, in MLflow."""


@app.command()
def replay(sweep_dirs: _SweepDirs, mlflow_uri: _MlflowUri = None) -> None:
    """Fill MLflow in from ledgers: a sweep that ran without it, whose server was down, or for another server.

    What is there already stays as it is, so it may be run again, and after every new start of the sweep.
    """
    replayed = [_replayed(place, mlflow_uri) for place in sweep_dirs]
    raise typer.Exit(0 if all(each.lag.problem is None for each in replayed) else 1)


@app.command()
def champions(sweep_dirs: _SweepDirs, mlflow_uri: _MlflowUri = None) -> None:
    """Replay, then put the best policies into MLflow's model registry: models:/dmray-<method>-<family>@<data set>.

    The best is the cell with the highest mean last score; of its seeds the one nearest their median, final weights.
    """
    replayed = [_replayed(place, mlflow_uri, register=True) for place in sweep_dirs]
    for each in (champion for done in replayed for champion in done.champions):
        trial, score = each.tags["dmray.trial_key"], each.cell_score
        out.print(f"models:/{each.model}@{each.alias}  {trial}, cell {score:.2f}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(each.lag.problem is None for each in replayed) else 1)


def _replayed(place: Path, mlflow_uri: str | None, register: bool = False) -> Replayed:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    path = place.expanduser().resolve()
    with told():
        replayed = replay_sweep(SweepFolder(path.parent, path.name), mlflow_uri, register)
    if replayed.lag.problem is None:
        out.print(f"{path}: all of it is in experiment dmray/{path.name}", highlight=False, soft_wrap=True)
    else:
        lag = replayed.lag
        err.print(f"{path}: {lag.records} records are missing: {lag.problem}", highlight=False, soft_wrap=True)
    return replayed


if __name__ == "__main__":
    app()
