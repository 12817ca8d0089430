"""`python -m dmray.track replay|champions SWEEP...`: copy the records of sweeps to MLflow at any time."""

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
from dmray.redaction import SecretFilter
from dmray.storage import is_url
from dmray.terminal import PlainFormatter

app = new_app()

_Sweeps = Annotated[
    list[str],
    typer.Argument(
        metavar="SWEEP...",
        help="Sweep files, or folders or URLs of sweeps: runs/quickstart, s3://bucket/runs/quickstart.",
    ),
]
_MlflowUri = Annotated[
    str | None, typer.Option(help="MLflow server. Default: that of the sweep file, or SQLite in the sweep's folder.")
]


@app.callback()
def main() -> None:
    """Copy the records of sweeps to MLflow."""


@app.command()
def replay(sweeps: _Sweeps, mlflow_uri: _MlflowUri = None) -> None:
    """Copy ledgers to MLflow: of a sweep that ran without MLflow or during an outage, or to another server.

    Records that MLflow already has are not changed, so the command may be repeated.
    """
    replayed = [_replayed(place, mlflow_uri) for place in sweeps]
    raise typer.Exit(0 if all(each.lag.problem is None for each in replayed) else 1)


@app.command()
def champions(sweeps: _Sweeps, mlflow_uri: _MlflowUri = None) -> None:
    """Replay, then register the best policies in MLflow: models:/dmray-<method>-<family>@<data set>.

    For each method and data set this is the size with the highest mean last score; of its seeds, the one whose score is
    nearest to their median, with its final weights.
    """
    replayed = [_replayed(place, mlflow_uri, register=True) for place in sweeps]
    for policy in (policy for each in replayed for policy in each.registered):
        details = f"{policy.tags[TRIAL]}, mean of its seeds {policy.seed_group_score:.2f}"
        out.print(f"models:/{policy.model}@{policy.alias}  {details}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(each.lag.problem is None for each in replayed) else 1)


def _replayed(sweep: str, mlflow_uri: str | None, register: bool = False) -> ReplayResult:
    handler = logging.StreamHandler()
    handler.addFilter(SecretFilter())
    handler.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    with report_errors():
        storage, name = locate(sweep)
        if is_url(storage):
            replayed = replay_from_store(storage, name, mlflow_uri, register)
        else:
            replayed = replay_sweep(SweepFolder(Path(storage), name), mlflow_uri, register)
    where = f"{storage}/{name}"
    if replayed.lag.problem is None:
        out.print(f"{where}: all records are in experiment dmray/{name}", highlight=False, soft_wrap=True)
    else:
        lag = replayed.lag
        err.print(f"{where}: {lag.records} records are missing: {lag.problem}", highlight=False, soft_wrap=True)
    return replayed


if __name__ == "__main__":
    app()
