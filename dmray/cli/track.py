"""`python -m dmray.track replay|champions SWEEP...`: copy what a sweep's ledgers hold into MLflow, at any time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from dmray.cli.shared import err, new_app, out, report_errors
from dmray.mlflow_mirror.layout import TRIAL
from dmray.mlflow_mirror.replay import ReplayResult, replay_from_store
from dmray.mlflow_mirror.replay import replay as replay_sweep
from dmray.progress.sweep_handle import locate
from dmray.records import SweepFolder
from dmray.storage import is_url

app = new_app()

_Sweeps = Annotated[
    list[str],
    typer.Argument(
        metavar="SWEEP...", help="A sweep's folder (runs/quickstart), URL (s3://bucket/prefix/quickstart) or file."
    ),
]
_MlflowUri = Annotated[
    str | None, typer.Option(help="The MLflow server to copy to. Default: that of the sweep, or SQLite in its storage.")
]


@app.callback()
def main() -> None:
    """Copy a sweep's records to MLflow; register its best models."""


@app.command()
def replay(sweeps: _Sweeps, mlflow_uri: _MlflowUri = None) -> None:
    """Copy a sweep's records to MLflow, after its server was down or `mlflow_uri` was off, or to another server.

    What is there already stays as it is, so this may be repeated, for example after every new start of the sweep.
    """
    replayed = [_replayed(place, mlflow_uri) for place in sweeps]
    raise typer.Exit(0 if all(each.lag.problem is None for each in replayed) else 1)


@app.command()
def champions(sweeps: _Sweeps, mlflow_uri: _MlflowUri = None) -> None:
    """Replay, then register the best policies in MLflow as models:/dmray-<method>-<family>@<data set>.

    The best is the seed group with the highest mean last score; of its seeds the one nearest their median, with its
    final weights.
    """
    replayed = [_replayed(place, mlflow_uri, register=True) for place in sweeps]
    for policy in (policy for each in replayed for policy in each.registered):
        told = f"{policy.tags[TRIAL]}, mean of its seeds {policy.seed_group_score:.2f}"
        out.print(f"models:/{policy.model}@{policy.alias}  {told}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(each.lag.problem is None for each in replayed) else 1)


def _replayed(sweep: str, mlflow_uri: str | None, register: bool = False) -> ReplayResult:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with report_errors():
        storage, name = locate(sweep)
        if is_url(storage):
            replayed = replay_from_store(storage, name, mlflow_uri, register)
        else:
            replayed = replay_sweep(SweepFolder(Path(storage), name), mlflow_uri, register)
    where = f"{storage}/{name}"
    if replayed.lag.problem is None:
        out.print(f"{where}: all of it is in experiment dmray/{name}", highlight=False, soft_wrap=True)
    else:
        lag = replayed.lag
        err.print(f"{where}: {lag.records} records are missing: {lag.problem}", highlight=False, soft_wrap=True)
    return replayed


if __name__ == "__main__":
    app()
