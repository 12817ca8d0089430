"""`python -m dmray.init [FOLDER]`: copy dmray's sweep files and examples into a folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dmray.arguments import folder_path
from dmray.cli.shared import new_app, out, report_errors
from dmray.shipped import copy_shipped

app = new_app(no_args_is_help=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="The folder; it is made if it does not exist.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Replace files that have another content.")] = False,
) -> None:
    """Copy dmray's sweep files and examples into FOLDER/sweeps and FOLDER/examples.

    If one of the files is there with another content, nothing is written, unless --force is given.
    """
    with report_errors():
        target = folder_path("folder", folder)
        written, same = copy_shipped(target, overwrite=force)
    for path in written:
        _print(f"wrote {path}")
    if same:
        _print(f"{len(same)} files were there already")
    if target != Path("."):
        _print(f"\nnext:\n  cd {shlex.quote(str(target))}")
    else:
        _print("\nnext:")
    _print("  dmray sweep sweeps/quickstart.yaml          # a few minutes on two cores")
    _print("  dmray sweep sweeps/quickstart.yaml --show   # all fields, with their values")


def _print(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    app()
