"""How a process of the command line begins and ends: its standard streams, its command, its exit status."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from dmray.cli.standard_streams import guard_standard_streams
from dmray.errors import DmrayError

_APPS = {
    "sweep": ("dmray.cli.sweep", "app"),
    "status": ("dmray.cli.status", "app"),
    "pause": ("dmray.cli.control", "pause_app"),
    "resume": ("dmray.cli.control", "resume_app"),
    "stop": ("dmray.cli.control", "stop_app"),
    "logs": ("dmray.cli.logs", "app"),
    "explain": ("dmray.cli.explain", "app"),
    "submit": ("dmray.cli.submit", "app"),
    "report": ("dmray.cli.report", "app"),
    "evaluate": ("dmray.cli.evaluate", "app"),
    "track": ("dmray.cli.track", "app"),
    "data": ("dmray.cli.data", "app"),
    "doctor": ("dmray.cli.doctor", "app"),
}
_ONLY_PRINT = ("status", "logs", "explain")
_INTERRUPTED = 130


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
        module, attribute = _APPS[name]
        getattr(import_module(module), attribute)(prog_name=prog_name)
    except DmrayError as mistake:  # outside of a command's `report_errors`
        from dmray.cli.shared import print_error

        print_error(mistake)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
