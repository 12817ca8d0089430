"""`dmray COMMAND ...`, the same as `python -m dmray.COMMAND ...`; a command's modules load when it is called."""

from __future__ import annotations

import sys
from importlib import import_module

from dmray.cli.shared import err, out
from dmray.registry import unknown

COMMANDS = {
    "sweep": "plan a sweep, run it, report it",
    "status": "how far a sweep is",
    "pause": "running trials save and leave, the driver waits",
    "resume": "a paused sweep goes on",
    "stop": "running trials save and leave, the driver ends",
    "logs": "what a trial's attempts did",
    "submit": "start a sweep on a remote cluster, and let go",
    "report": "tables and figures from the records",
    "evaluate": "a stored policy again",
    "track": "fill MLflow in, name champions",
    "data": "the data sets: list, fetch, verify, stats, make",
    "doctor": "what this machine has, lacks, and how fast it is",
}
_USAGE = "usage: dmray COMMAND [--help] ...\n\n" + "\n".join(f"  {name:10}{what}" for name, what in COMMANDS.items())


def main() -> None:
    """Hand the command line to the command that it names. Exit status 2 where it names none."""
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("--help", "-h"):
        out.print(_USAGE, highlight=False, markup=False)
        return
    if name not in COMMANDS:
        err.print(f"error: {unknown('command', name, COMMANDS)}", style="bold red", highlight=False, markup=False)
        raise SystemExit(2)
    sys.argv = [f"dmray {name}", *rest]  # what a command says of itself
    import_module("dmray.cli.data" if name == "data" else f"dmray.{name}").app(prog_name=sys.argv[0])


if __name__ == "__main__":
    main()
