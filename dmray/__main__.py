"""`dmray COMMAND ...`, the same as `python -m dmray.COMMAND ...`. Only the modules of that command are imported."""

from __future__ import annotations

import os
import sys

from dmray.cli.entry import COMMANDS, COMPLETION, run_command
from dmray.cli.standard_streams import guard_standard_streams


def main() -> None:
    """Run the command that the command line names. Exit status 2 if there is no such command."""
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name in COMMANDS and COMPLETION not in os.environ:
        sys.argv = [f"dmray {name}", *rest]  # the name that a command shows in its help
        run_command(name, prog_name=sys.argv[0])
        return
    guard_standard_streams(only_prints=True)
    from dmray.cli.program import run_program

    run_program(sys.argv[1:])


if __name__ == "__main__":
    main()
