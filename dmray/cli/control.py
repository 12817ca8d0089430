"""`python -m dmray.pause | resume | stop SWEEP`: send a command to a running sweep, from any shell or machine."""

from __future__ import annotations

from typing import Annotated

import typer

from dmray.cli.shared import SweepSource, SweepStorage, new_app, out, report_errors
from dmray.coordination.sweep_lock import describe_missing_driver
from dmray.errors import StorageError
from dmray.progress.sweep_handle import find_sweep

pause_app, resume_app, stop_app = new_app(), new_app(), new_app()


@pause_app.command()
def pause(sweep: SweepSource, storage: SweepStorage = None) -> None:
    """Pause a sweep: running trials save a checkpoint and exit, and the driver waits for `dmray resume`.

    Exit status 1 if no driver is running.
    """
    with report_errors(), find_sweep(sweep, storage) as found:
        driver, command = found.driver_and_command()
        if driver is None or not driver.alive:
            raise StorageError(f"{found.where}: {describe_missing_driver(driver)}; there is nothing to pause")
        if command and command.kind in ("stop", "kill"):
            raise StorageError(f"{found.where}: the sweep is being stopped (by {command.sent_by})")
        if command is None or command.kind != "pause":
            found.send_command("pause")
        _print("paused: running trials save a checkpoint and exit; continue with dmray resume")


@resume_app.command()
def resume(sweep: SweepSource, storage: SweepStorage = None) -> None:
    """Let a paused sweep continue. If its driver has ended, print the command that continues the sweep.

    Exit status 1 if no driver is running, or the sweep is being stopped.
    """
    with report_errors(), find_sweep(sweep, storage) as found:
        driver, command = found.driver_and_command()
        hint = f"continue with:\n  {(command and command.resume_command) or 'python -m dmray.sweep FILE --resume'}"
        if driver is None or not driver.alive:
            raise StorageError(f"{found.where}: {describe_missing_driver(driver)}; {hint}")
        if command and command.kind in ("stop", "kill"):
            raise StorageError(
                f"{found.where}: the sweep is being stopped (by {command.sent_by}); when it has ended, {hint}"
            )
        if command and command.kind == "pause":
            found.send_command("run")
            _print("resumed: the driver starts the trials again")
        else:
            _print("the sweep is not paused")


@stop_app.command()
def stop(
    sweep: SweepSource,
    now: Annotated[
        bool, typer.Option("--now", help="End at once; steps after the last checkpoints are repeated.")
    ] = False,
    storage: SweepStorage = None,
) -> None:
    """Stop a sweep: running trials save a checkpoint and exit, and the driver writes the report and ends.

    Exit status 0 also if no driver is running.
    """
    with report_errors(), find_sweep(sweep, storage) as found:
        driver, command = found.driver_and_command()
        if driver is None:
            _print(f"{found.where}: no driver is running, so there is nothing to stop")
            return
        found.send_command("kill" if now else "stop")  # also if it looks dead, since clocks may differ
        when = "at once" if now else "when its running trials have saved a checkpoint"
        _print(f"{driver}: ends {when}" if driver.alive else f"{driver}: looks dead; if it is alive, it ends {when}")
        if command and command.resume_command:
            _print(f"continue with: {command.resume_command}")


def _print(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)
