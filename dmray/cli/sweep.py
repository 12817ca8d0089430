"""`python -m dmray.sweep FILE`: plan a sweep, run it, write its report."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmray.api import plan_sweep, run_sweep
from dmray.cli.shared import CONTINUE_WITH, err, finite_number, log_to_stderr, new_app, out, report_errors, sweep_files
from dmray.cli.sweep_plan import PlanFor, show_plan
from dmray.errors import ClusterLostError, SpecError
from dmray.interruption import SweepInterrupted, interruptible
from dmray.planning.trial_filter import TrialFilter
from dmray.progress.trial_status import ENDED, TrialStatus
from dmray.redaction import HIDDEN, refuse_placeholders, without_secrets
from dmray.specs.loading import read_values
from dmray.specs.showing import show_sweep
from dmray.storage import is_url
from dmray.trackers.table import wanted_trackers

if TYPE_CHECKING:
    from dmray.reporting.frames import SweepRun

app = new_app()


@app.command()
def main(
    file: Annotated[
        Path,
        typer.Argument(
            help="The sweep file, for example sweeps/quickstart.yaml, or the name of one of dmray's: quickstart.",
            autocompletion=sweep_files,
        ),
    ],
    show: Annotated[
        bool, typer.Option("--show", help="Print all fields, with their values and where they come from; run nothing.")
    ] = False,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Print trials, order, cost and status; run nothing.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:N]", help="With --plan: the time on N machines of another kind; 'list' names them."
        ),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="With --plan: as if each machine had so many CPUs.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, max=64, help="With --plan: as if each machine had so many GPUs.")
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(parser=finite_number, metavar="<float>", help="With --plan: what one machine costs an hour."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a sweep; finished trials are kept.")] = False,
    only: Annotated[str | None, typer.Option(metavar="EXPR", help="Run some trials: 'method=dm|dt,seed=0'.")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Run part I of N; give each part its own storage.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run only the trials that failed.")] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Run one trial after the other in this process, without Ray.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster, for example auto. Default: start one on this machine.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Where the sweep is written: a folder, or s3://bucket/prefix.")
    ] = None,
    mlflow_uri: Annotated[
        str | None, typer.Option(help="An MLflow server, or off. Default: SQLite in the storage.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", help="KEY=VALUE replaces a value of the file: -o training.steps=1000.")
    ] = None,
) -> None:
    """Run the trials of a sweep file on Ray, write the report, and print which method has the higher score."""
    overrides = overrides_of(override, storage, mlflow_uri)
    log_to_stderr()
    try:
        with interruptible(last_words=f"Ended at once. {_how_to_continue()}"), report_errors():
            where = PlanFor(local, address, on, cpus, gpus, price)
            if local and address is not None:
                raise SpecError(f"--address {address}: --local does not use Ray; give only one of them")
            if show:
                others = {"--plan": only_plan, "--resume": resume, "--retry-failed": retry_failed, "--local": local}
                _check_alone(others | {"--only": only, "--shard": shard, "--address": address} | dict(where.options))
            planned = plan_sweep(file, overrides)
            if show:
                shown = show_sweep(read_values(file, overrides))
                out.print(shown, end="", highlight=False, markup=False, soft_wrap=True)
                return
            if only_plan:
                show_plan(planned, TrialFilter(only, shard, retry_failed), where)
                return
            where.refuse_without_plan()
            refuse_placeholders()
            if CONTINUE_WITH in os.environ:
                os.chdir("/")  # the folder of a job is Ray's, which may remove it
            try:
                run = run_sweep(
                    planned,
                    local=local,
                    address=address,
                    resume=resume,
                    only=only,
                    shard=shard,
                    retry_failed=retry_failed,
                    console=err,
                    continue_with=_continue_command(),
                )
            except ClusterLostError as lost:
                err.print("error:", str(lost), style="bold red", highlight=False, markup=False, soft_wrap=True)
                _print_how_to_continue("Ended")
                raise typer.Exit(1) from None
            _print_end(run)
    except SweepInterrupted as by:
        _print_how_to_continue(f"Stopped by {by.signum.name}")
        raise typer.Exit(by.exit_status) from None
    raise typer.Exit(0 if run.succeeded or run.stopped_by is not None else 1)


def overrides_of(override: Sequence[str] | None, storage: str | None, mlflow_uri: str | None) -> list[str]:
    """The options that replace values of the sweep file, as `key.path=value`."""
    options = {"storage": storage, "tracking.mlflow_uri": mlflow_uri}
    return [
        *(override or []),
        *(f"{key}={_as_text(value)}" for key, value in options.items() if value is not None),
    ]


def _check_alone(others: Mapping[str, object]) -> None:
    """Raise a SpecError if an option is given that --show makes no use of."""
    for option, value in others.items():
        if value is not None and value is not False:
            raise SpecError(f"{option}: --show only prints the sweep; leave out one of the two")


def _as_text(value: str) -> str:
    """YAML that is read as this text, also for a folder whose name looks like a number or a list."""
    return json.dumps(value, ensure_ascii=False)


def _continue_command() -> str:
    """The command that continues this sweep, without passwords: it is stored and shown."""
    if CONTINUE_WITH in os.environ:
        return without_secrets(os.environ[CONTINUE_WITH])
    options = [without_secrets(word) for word in sys.argv[1:] if word not in ("--resume", "--retry-failed")]
    return shlex.join(["python", "-m", "dmray.sweep", *options, "--resume"])


def _print_end(run: SweepRun) -> None:
    """Print the tables, the places of the report and the trackers, and the trials that have not ended well."""
    out.print(run)
    _print_places(run)
    if run.stopped_by is not None:
        _print_how_to_continue(f"Stopped by {run.stopped_by}")
        return
    for trial_id, status in run.statuses.items():
        if status not in ENDED:
            waits = status is TrialStatus.WAITING
            died = "its workers died more often than 'faults' allows; --resume continues it"
            why = run.errors.get(trial_id, "it was not begun; --resume begins it" if waits else died)
            err.print(f"{status.label}: {trial_id}: {why}", style="red", highlight=False, markup=False, soft_wrap=True)


def _print_how_to_continue(what: str) -> None:
    err.print(f"{what}; nothing is lost. {_how_to_continue()}", highlight=False, markup=False, soft_wrap=True)


def _how_to_continue() -> str:
    command = _continue_command()
    password = (
        f"\nwith the password in place of {HIDDEN}, or in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        if HIDDEN in command
        else ""
    )
    return f"Continue with:\n  {command}{password}"


def _print_places(run: SweepRun) -> None:
    """Print where the report and the runs of each tracker are."""
    sweep, (folder,) = run.plan.sweep, run.folders
    trackers = wanted_trackers(sweep.tracking)
    width = max([8, *(len(kind.name) for kind in trackers)])
    out.print(f"{'report':<{width}} {run.report / 'report.html'}", highlight=False, soft_wrap=True)
    if is_url(sweep.storage):
        out.print(f"{'':<{width}} {sweep.storage}/{folder.name}/report/report.html", highlight=False, soft_wrap=True)
    for kind in trackers:
        for title, line in zip_longest((kind.name,), kind.place(sweep.tracking, folder), fillvalue=""):
            out.print(f"{title:<{width}} {line}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
