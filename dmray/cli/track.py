"""`python -m dmray.track replay|champions SWEEP...`: copy the records of sweeps to their trackers at any time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from dmray.cli.shared import err, new_app, out, report_errors
from dmray.errors import SpecError
from dmray.mlflow_mirror.layout import TRIAL
from dmray.progress.sweep_handle import locate
from dmray.records import SweepFolder
from dmray.redaction import SecretFilter
from dmray.registry import short
from dmray.specs import WandbSpec
from dmray.storage import is_url
from dmray.terminal import PlainFormatter
from dmray.trackers.replay import ReplayChanges, ReplayResult, replay_from_store
from dmray.trackers.replay import replay as replay_sweep

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
    """Copy the records of sweeps to MLflow, W&B and TensorBoard."""


@app.command()
def replay(
    sweeps: _Sweeps,
    mlflow_uri: _MlflowUri = None,
    wandb: Annotated[
        str | None,
        typer.Option(metavar="[ENTITY/]PROJECT", help="A project of W&B. Default: that of the sweep file, if any."),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write files for TensorBoard also if the sweep file does not say so.")
    ] = False,
) -> None:
    """Copy ledgers to the trackers of the sweep file, after an outage or a run without them, and to those named here.

    Records that a tracker already has are not changed, so the command may be repeated.
    """
    with report_errors():
        changes = ReplayChanges(mlflow_uri, None if wandb is None else _wandb_spec(wandb), tensorboard)
    replayed = [_replayed(place, changes) for place in sweeps]
    raise typer.Exit(0 if all(each.complete for each in replayed) else 1)


@app.command()
def champions(sweeps: _Sweeps, mlflow_uri: _MlflowUri = None) -> None:
    """Replay to MLflow, then register the best policies there: models:/dmray-<method>-<family>@<data set>.

    For each method and data set this is the size with the highest mean last score; of its seeds, the one whose score is
    nearest to their median, with its final weights.
    """
    replayed = [_replayed(place, ReplayChanges(mlflow_uri, champions=True)) for place in sweeps]
    for policy in (policy for each in replayed for policy in each.registered):
        details = f"{policy.tags[TRIAL]}, mean of its seeds {policy.seed_group_score:z.2f}"
        out.print(f"models:/{policy.model}@{policy.alias}  {details}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(each.complete for each in replayed) else 1)


def _wandb_spec(text: str) -> WandbSpec:
    entity, slash, project = text.rpartition("/")
    try:
        return WandbSpec(project=project, entity=entity if slash else None)
    except ValidationError:
        raise SpecError(
            f"--wandb {short(text)}: not a project of W&B; for example --wandb dmray, or --wandb my-team/dmray"
        ) from None


def _replayed(sweep: str, changes: ReplayChanges) -> ReplayResult:
    handler = logging.StreamHandler()
    handler.addFilter(SecretFilter())
    handler.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    with report_errors():
        storage, name = locate(sweep)
        if is_url(storage):
            replayed = replay_from_store(storage, name, changes)
        else:
            replayed = replay_sweep(SweepFolder(Path(storage), name), changes)
    for tracker, lag in replayed.lags.items():
        where = f"{storage}/{name}: {tracker}"
        if lag.problem is None:
            place = ", ".join(replayed.places[tracker])
            out.print(f"{where} has all records: {place}", highlight=False, markup=False, soft_wrap=True)
        else:
            said = f"{where}: {lag.records} records are missing: {lag.problem}"
            err.print(said, highlight=False, markup=False, soft_wrap=True)
    return replayed


if __name__ == "__main__":
    app()
