"""`python -m dmray.sweep FILE`: plan a sweep, run it, write its report."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmray.api import plan_sweep, run_sweep
from dmray.cli.shared import err, log_to_terminal, new_app, out, report_errors
from dmray.driver.plan_view import render_plan, render_time_estimate
from dmray.errors import ClusterError, ClusterLostError, SpecError, StorageError
from dmray.interruption import SweepInterrupted, interruptible
from dmray.mlflow_mirror.database import sqlite_uri
from dmray.planning.calibration import hardware_name, load_calibration
from dmray.planning.plan import Plan
from dmray.planning.time_estimate import estimate_time
from dmray.planning.trial_filter import TrialFilter, select_trials
from dmray.progress.changes import changes
from dmray.progress.extensions import find_extensions
from dmray.progress.trial_status import ENDED, to_run, trial_statuses
from dmray.redaction import HIDDEN, refuse_placeholders, without_secrets
from dmray.specs import NO_MLFLOW, TrialSpec
from dmray.storage import SweepCopy, is_url, sweep_folder

if TYPE_CHECKING:
    from dmray.reporting.frames import SweepRun

app = new_app()


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="The sweep file, for example sweeps/quickstart.yaml.")],
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Print trials, order, cost and status; run nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a sweep; finished trials are kept.")] = False,
    only: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Run some trials: 'method=dm|dt,dataset=hopper-*,seed=0'.")
    ] = None,
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
    options = {"storage": storage, "tracking.mlflow_uri": mlflow_uri}
    overrides = [
        *(override or []),
        *(f"{key}={_as_text(value)}" for key, value in options.items() if value is not None),
    ]
    log_to_terminal()
    try:
        with interruptible(last_words=f"Ended at once. {_how_to_continue()}"), report_errors():
            if local and address is not None:
                raise SpecError(f"--address {address}: --local does not use Ray; give only one of them")
            planned = plan_sweep(file, overrides)
            if only_plan:
                _show(planned, TrialFilter(only, shard, retry_failed), local, address)
                return
            refuse_placeholders()
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


def _as_text(value: str) -> str:
    """YAML that is read as this text, also for a folder whose name looks like a number or a list."""
    return json.dumps(value, ensure_ascii=False)


def _continue_command() -> str:
    """The command that continues this sweep, without passwords: it is stored and shown."""
    options = [without_secrets(word) for word in sys.argv[1:] if word not in ("--resume", "--retry-failed")]
    return shlex.join(["python", "-m", "dmray.sweep", *options, "--resume"])


def _show(planned: Plan, trial_filter: TrialFilter, local: bool, address: str | None) -> None:
    """Print the plan, what has changed since the last start, which trials would run, and the time.

    Raises:
        ClusterError: the trials do not fit the cluster at `address`. (The plan is printed before.)
    """
    folder = sweep_folder(planned.sweep.storage, planned.sweep.name, "reader")
    if is_url(planned.sweep.storage):
        _download_records(planned)
    statuses = trial_statuses(planned, folder)
    extended = find_extensions(planned, folder, statuses)
    difference = changes(planned, folder, statuses, extended)
    part = replace(planned, trials=select_trials(planned, trial_filter))
    out.print(render_plan(part, {trial_id: statuses[trial_id] for trial_id in part.trial_ids}))
    if difference and difference.any:
        out.print(f"since the last start: {difference}", highlight=False, markup=False, soft_wrap=True)
    todo = to_run(planned, statuses, resume=True, trial_filter=trial_filter)
    if todo:
        out.print(
            f"to run: {len(todo)} trials; {_time(planned, todo, local, address)}", highlight=False, soft_wrap=True
        )
    else:
        out.print("to run: nothing, every trial is done")


def _download_records(planned: Plan) -> None:
    """Download the sweep's records from its object store. If that is not possible, print it and continue."""
    try:
        SweepCopy.for_reading(planned.sweep.storage, planned.sweep.name).download()
    except StorageError as problem:
        message = f"the status of trials may be out of date: {problem}"
        err.print(message, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _time(planned: Plan, todo: Sequence[TrialSpec], local: bool, address: str | None) -> str:
    """Say how many trials run at the same time, and how many hours they take if this hardware was measured.

    Raises:
        ClusterError: the trials do not fit the cluster at `address`. (If they do not fit this machine, the result says
            so.)
    """
    resources, concurrent, placement = planned.sweep.resources, 0, "one after the other in this process"
    if not local:
        try:
            concurrent, placement = _placement(planned, len(todo), address)
        except ClusterError as problem:
            if address:
                raise
            return f"not on this machine: {problem}"
    calibration = load_calibration(hardware_name())
    if calibration is None:
        return f"{placement}\ntime: unknown; measure this hardware once with: python -m dmray.doctor --calibrate"
    try:
        made = estimate_time(todo, resources, calibration, concurrent)
    except SpecError as lacking:
        return f"{placement}\ntime: unknown; {lacking}"
    return f"{placement}\n{render_time_estimate(made, calibration.hardware)}"


def _placement(planned: Plan, num_trials: int, address: str | None) -> tuple[int, str]:
    """The number of concurrent trials, and a sentence that says where they run."""
    from dmray import on_ray

    resources = planned.sweep.resources
    machines = on_ray.machines_at(address, planned) if address else on_ray.machine_here(resources)
    concurrent = on_ray.place_trials(resources, machines, max(num_trials, 1)).concurrent_trials
    where = f"the cluster at {address}" if address else "this machine"
    return concurrent, (
        f"{concurrent} at a time, evaluation actors: {resources.evaluation_actors}; "
        f"fits {where} ({machines.cpus:g} CPUs, {machines.gpus:g} GPUs)"
    )


def _print_end(run: SweepRun) -> None:
    """Print the tables, the places of report and MLflow runs, and the trials that have not ended well."""
    out.print(run)
    _print_places(run)
    if run.stopped_by is not None:
        _print_how_to_continue(f"Stopped by {run.stopped_by}")
        return
    for trial_id, status in run.statuses.items():
        if status not in ENDED:
            why = run.errors.get(trial_id, "its workers died more often than 'faults' allows; --resume continues it")
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
    """Print where the report and the MLflow runs are."""
    sweep, (folder,) = run.plan.sweep, run.folders
    uri = sweep.tracking.mlflow_uri
    out.print(f"report   {run.report / 'report.html'}", highlight=False, soft_wrap=True)
    if is_url(sweep.storage):
        out.print(f"         {sweep.storage}/{folder.name}/report/report.html", highlight=False, soft_wrap=True)
    if uri is None:
        uri_here = shlex.quote(sqlite_uri(folder.mlflow_database))
        out.print(f"MLflow   mlflow ui --backend-store-uri {uri_here}", highlight=False, markup=False, soft_wrap=True)
        out.print(f"         then open http://127.0.0.1:5000, experiment dmray/{folder.name}", highlight=False)
    elif uri != NO_MLFLOW:
        out.print(f"MLflow   {without_secrets(uri)}, experiment dmray/{folder.name}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
