"""`dmray` without a command: its help, the versions, and the completion of commands in the shell."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import typer
from typer.core import TyperGroup

import dmray
from dmray.cli.entry import COMMANDS, COMPLETION, load_app
from dmray.cli.shared import err, out
from dmray.registry import unknown

_PACKAGES = ("torch", "ray", "mlflow", "mujoco", "envpool")
_USAGE = "\n".join(
    [
        "usage: dmray COMMAND [--help] ...\n",
        *(f"  {name:10}{command.help_text}" for name, command in COMMANDS.items()),
        "\n  --version               show the versions of dmray and its main packages",
        "  --install-completion    let this shell complete commands and options",
        "  --show-completion       print the script that does this",
    ]
)


def run_program(arguments: list[str]) -> None:
    """Do what the options say, or answer the shell. Exit status 2 if the first argument is unknown.

    Raises:
        SystemExit: always, except after the help and the versions.
    """
    first = arguments[0] if arguments else "--help"
    if COMPLETION in os.environ or first.split("=")[0] in ("--install-completion", "--show-completion"):
        _completing_app()(arguments, prog_name="dmray")
    elif first in ("--help", "-h"):
        out.print(_USAGE, highlight=False, markup=False)
    elif first == "--version":
        out.print("\n".join(versions()), highlight=False, markup=False)
    else:
        err.print(f"error: {unknown('command', first, COMMANDS)}", style="bold red", highlight=False, markup=False)
        raise SystemExit(2)


def versions() -> list[str]:
    """dmray, Python and the main packages, one a line. None of the packages is imported."""
    lines = [f"dmray {dmray.__version__}", f"python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed")
    return lines


class _Commands(TyperGroup):
    """All commands as one; the modules of a command are imported when its own options are completed."""

    _is_naming = False  # the names of commands are wanted, not what they take

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        self._is_naming = True
        return super().shell_complete(ctx, incomplete)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if self._is_naming:
            return typer.core.TyperCommand(cmd_name, help=COMMANDS[cmd_name].help_text)
        return typer.main.get_command(load_app(cmd_name))


def _completing_app() -> typer.Typer:
    app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False)

    @app.callback()
    def main() -> None:
        """Compare offline-RL sequence models."""

    return app
