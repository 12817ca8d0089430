"""`dmray COMMAND ...`, the same as `python -m dmray.COMMAND ...`. Only the modules of that command are imported."""

from __future__ import annotations

import sys

from dmray.cli.entry import run_command
from dmray.cli.standard_streams import guard_standard_streams

COMMANDS = {
    "sweep": "plan a sweep, run it, write its report",
    "status": "show the progress of a sweep",
    "pause": "running trials save a checkpoint and exit, the driver waits",
    "resume": "continue a paused sweep",
    "stop": "running trials save a checkpoint and exit, the driver ends",
    "logs": "print a trial's log",
    "explain": "say what is known of a trial, why it failed, what to do next",
    "submit": "start a sweep as a job on a remote Ray cluster",
    "report": "make tables and figures from a sweep's records",
    "evaluate": "evaluate a checkpoint again",
    "track": "copy a sweep's records to MLflow, register the best models",
    "data": "list, fetch, verify, summarize or record data sets",
    "doctor": "check this machine, measure its speed",
}
_USAGE = "usage: dmray COMMAND [--help] ...\n\n" + "\n".join(
    f"  {name:10}{help_text}" for name, help_text in COMMANDS.items()
)


def main() -> None:
    """Run the command that the command line names. Exit status 2 if there is no such command."""
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in COMMANDS:
        sys.argv = [f"dmray {name}", *rest]  # the name that a command shows in its help
        run_command(name, prog_name=sys.argv[0])
        return
    from dmray.cli.shared import err, out
    from dmray.registry import unknown

    guard_standard_streams(only_prints=True)
    if name in ("--help", "-h"):
        out.print(_USAGE, highlight=False, markup=False)
        return
    err.print(f"error: {unknown('command', name, COMMANDS)}", style="bold red", highlight=False, markup=False)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
