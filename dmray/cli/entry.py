"""How a process of the command line begins and ends: its standard streams, its command, its exit status."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, NamedTuple

from dmray.cli.standard_streams import guard_standard_streams
from dmray.errors import DmrayError


class Command(NamedTuple):
    """A command of `dmray`: the typer app that runs it, `module`:`attribute`, and one line that says what it does."""

    module: str
    attribute: str
    help_text: str


COMMANDS = {
    "init": Command("dmray.cli.init", "app", "copy dmray's sweep files and examples into a folder"),
    "sweep": Command("dmray.cli.sweep", "app", "plan a sweep, run it, write its report"),
    "status": Command("dmray.cli.status", "app", "show the progress of a sweep"),
    "pause": Command("dmray.cli.control", "pause_app", "running trials save a checkpoint and exit, the driver waits"),
    "resume": Command("dmray.cli.control", "resume_app", "continue a paused sweep"),
    "stop": Command("dmray.cli.control", "stop_app", "running trials save a checkpoint and exit, the driver ends"),
    "logs": Command("dmray.cli.logs", "app", "print a trial's log"),
    "explain": Command("dmray.cli.explain", "app", "say what is known of a trial, why it failed, what to do next"),
    "submit": Command("dmray.cli.submit", "app", "start a sweep as a job on a remote Ray cluster"),
    "report": Command("dmray.cli.report", "app", "make tables and figures from a sweep's records"),
    "evaluate": Command("dmray.cli.evaluate", "app", "evaluate a checkpoint again"),
    "analyze": Command("dmray.cli.analyze", "app", "show what stored policies have learned"),
    "export": Command(
        "dmray.cli.export", "app", "write a policy as TorchScript, ONNX or safetensors, with a model card"
    ),
    "track": Command("dmray.cli.track", "app", "copy a sweep's records to MLflow, register the best models"),
    "data": Command("dmray.cli.data", "app", "list, fetch, verify, summarize or record data sets"),
    "doctor": Command("dmray.cli.doctor", "app", "check this machine, measure its speed"),
}
COMPLETION = "_DMRAY_COMPLETE"  # set by the script of --install-completion: the shell asks how a line goes on
_ONLY_PRINT = ("status", "logs", "explain")
_INTERRUPTED = 130


def load_app(name: str) -> Any:
    """The typer app of a command."""
    command = COMMANDS[name]
    return getattr(import_module(command.module), command.attribute)


def run_command(name: str, prog_name: str | None = None) -> None:
    """Run a command with the arguments of the command line. Only its own modules are imported.

    Raises:
        SystemExit: always; with 130 after Ctrl-C.
    """
    try:
        guard_standard_streams(only_prints=name in _ONLY_PRINT)
        try:
            os.getcwd()
        except OSError:  # libraries are not found then, and relative paths mean nothing
            sys.stderr.write("error: the current folder was removed, or may not be read; cd to another one\n")
            raise SystemExit(1) from None
        load_app(name)(prog_name=prog_name)
    except DmrayError as mistake:  # outside of a command's `report_errors`
        from dmray.cli.shared import print_error

        print_error(mistake)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
