"""`python -m dmray.sweep FILE`: plan a sweep, run it, report it."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.logging import RichHandler

from dmray.cli.plan_view import render_plan, render_time_estimate
from dmray.cli.shared import err, new_app, out, report_errors
from dmray.coordination.commands import read_command
from dmray.errors import ClusterError, SpecError, StorageError
from dmray.planning.calibration import hardware_name, load_calibration
from dmray.planning.plan import Plan, load_plan
from dmray.planning.time_estimate import estimate_time
from dmray.planning.trial_filter import TrialFilter, select_trials
from dmray.progress.changes import changes
from dmray.progress.trial_status import ENDED, TrialStatus, failures, to_run, trial_statuses
from dmray.records.folders import SweepFolder
from dmray.specs import NO_MLFLOW, TrialSpec
from dmray.storage import SweepCopy, is_url, sweep_folder

if TYPE_CHECKING:
    from dmray.driver.session import Runner

app = new_app()
_INTERRUPTED = 130


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="The sweep file, for example sweeps/quickstart.yaml.")],
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Print trials, order, cost, what is done; run nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue: what is finished is kept, the rest goes on.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Some trials: 'method=dm|dt,dataset=hopper-*,seed=0'.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="The I-th of N parts, each with a storage of its own.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run the trials again that ended with an error, and no others.")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="No Ray: one trial after the other in this process.")] = False,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster, for example auto; else one is started.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Everything that the sweep writes: a folder, or s3://bucket/prefix.")
    ] = None,
    mlflow_uri: Annotated[
        str | None, typer.Option(help="An MLflow server, or off; else SQLite in the storage.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", help="KEY=VALUE over the file: -o training.steps=1000.")
    ] = None,
) -> None:
    """Run every trial of a sweep file on Ray, keep its records, and tell which method is better."""
    named = {"storage": storage, "tracking.mlflow_uri": mlflow_uri}
    overrides = [*(override or []), *(f"{key}={value}" for key, value in named.items() if value is not None)]
    handler = RichHandler(console=err, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("dmray").setLevel(logging.INFO)
    try:
        with report_errors():
            if local and address is not None:
                raise SpecError(f"--address {address}: --local runs without Ray; leave one of them out")
            planned = load_plan(file, overrides)
            folder = sweep_folder(planned.sweep.storage, planned.sweep.name, "reader" if only_plan else "driver")
            choice = TrialFilter(only, shard, retry_failed)
            if only_plan:
                _show(planned, folder, choice, local, address)
                return
            succeeded = _run(planned, folder, choice, resume, _runner(local, address))
    except KeyboardInterrupt:
        _tell_how_to_continue("Stopped")
        raise typer.Exit(_INTERRUPTED) from None
    raise typer.Exit(0 if succeeded else 1)


def _again() -> str:
    """The command that continues this one."""
    options = [word for word in sys.argv[1:] if word not in ("--resume", "--retry-failed")]
    return shlex.join(["python", "-m", "dmray.sweep", *options, "--resume"])


def _show(planned: Plan, folder: SweepFolder, choice: TrialFilter, local: bool, address: str | None) -> None:
    """The plan, what changed, what it takes; an error at the end if it does not fit the cluster."""
    if is_url(planned.sweep.storage):
        _look_into_store(planned)
    states = trial_statuses(planned, folder)
    difference = changes(planned, folder, states)
    part = replace(planned, trials=select_trials(planned, choice))
    out.print(render_plan(part, {trial_id: states[trial_id] for trial_id in part.trial_ids}))
    if difference and difference.any:
        out.print(f"since the last start: {difference}", highlight=False, markup=False, soft_wrap=True)
    todo = to_run(planned, states, resume=True, choice=choice)
    out.print(f"to run: {len(todo)} trials; {_time(planned, todo, local, address)}", highlight=False, soft_wrap=True)


def _look_into_store(planned: Plan) -> None:
    """Fetch what is done; a machine that may not look can plan all the same."""
    try:
        SweepCopy.to_read(planned.sweep.storage, planned.sweep.name).open()
    except StorageError as problem:
        err.print(f"what is done may be more: {problem}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def _time(planned: Plan, todo: Sequence[TrialSpec], local: bool, address: str | None) -> str:
    """How many at once, and hours where this hardware was calibrated.

    Raises:
        ClusterError: they do not fit the cluster at `address`. (What does not fit this machine may be for another.)
    """
    resources, concurrent, said = planned.sweep.resources, 0, "one after the other in this process"
    if not local:
        try:
            concurrent, said = _room(planned, len(todo), address)
        except ClusterError as problem:
            if address:
                raise
            return f"not on this machine: {problem}"
    calibration = load_calibration(hardware_name())
    if calibration is None:
        return f"{said}\ntime: unknown; measure this hardware once with: python -m dmray.doctor --calibrate"
    try:
        made = estimate_time(todo, resources, calibration, concurrent)
    except SpecError as lacking:
        return f"{said}\ntime: unknown; {lacking}"
    return f"{said}\n{render_time_estimate(made, calibration.hardware)}"


def _room(planned: Plan, num_trials: int, address: str | None) -> tuple[int, str]:
    from dmray import on_ray

    resources = planned.sweep.resources
    machines = on_ray.machines_at(address, planned) if address else on_ray.machine_here(resources)
    concurrent = on_ray.place_trials(resources, machines, max(num_trials, 1)).concurrent_trials
    where = f"the cluster at {address}" if address else "this machine"
    return concurrent, (
        f"{concurrent} at a time beside {resources.evaluation_actors} evaluation actors: "
        f"fits {where} ({machines.cpus:g} CPUs, {machines.gpus:g} GPUs)"
    )


def _run(planned: Plan, folder: SweepFolder, choice: TrialFilter, resume: bool, runner: Runner) -> bool:
    """Run, report, tell; whether every chosen trial has ended well, or the sweep was told to stop."""
    from dmray.driver.session import run_sweep
    from dmray.reporting import render_summary, write_report

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite stop is a Ctrl-C

    def report(sweep: SweepFolder) -> Path:
        return write_report(sweep).folder

    states = run_sweep(planned, folder, runner, report, resume=resume, console=err, choice=choice, again=_again())
    out.print(render_summary(folder))
    _tell_where(planned, folder)
    part = {trial.trial_id: states[trial.trial_id] for trial in select_trials(planned, choice)}
    order = read_command(folder)
    if order and order.kind == "stop" and not ENDED.issuperset(part.values()):
        _tell_how_to_continue(f"Stopped by {order.by}")
        return True
    _tell_what_is_missing(planned, folder, part)
    return all(state in ENDED for state in part.values())


def _runner(local: bool, address: str | None) -> Runner:
    if local:
        from dmray.driver.local_runner import LocalRunner

        return LocalRunner()
    from dmray.on_ray import RayRunner

    return RayRunner(address)


def _tell_what_is_missing(planned: Plan, folder: SweepFolder, states: dict[str, TrialStatus]) -> None:
    errors = failures(planned, folder)
    for trial_id, state in states.items():
        if state not in ENDED:
            why = errors.get(trial_id, "its workers died more often than 'faults' allows; --resume continues it")
            err.print(f"{state.label}: {trial_id}: {why}", style="red", highlight=False, markup=False, soft_wrap=True)


def _tell_how_to_continue(what: str) -> None:
    err.print(f"{what}; nothing is lost. Continue with:\n  {_again()}", highlight=False, soft_wrap=True)


def _tell_where(planned: Plan, folder: SweepFolder) -> None:
    uri = planned.sweep.tracking.mlflow_uri
    out.print(f"report   {folder.report / 'report.html'}", highlight=False, soft_wrap=True)
    if is_url(planned.sweep.storage):
        out.print(f"         {planned.sweep.storage}/{folder.name}/report/report.html", highlight=False, soft_wrap=True)
    if uri is None:
        uri_here = f"sqlite:///{folder.mlflow_database}"
        out.print(f"MLflow   mlflow ui --backend-store-uri {uri_here}", highlight=False, soft_wrap=True)
        out.print(f"         then open http://127.0.0.1:5000, experiment dmray/{folder.name}", highlight=False)
    elif uri != NO_MLFLOW:
        out.print(f"MLflow   {uri}, experiment dmray/{folder.name}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
