"""`python -m dmray.report SWEEP_DIR`: the tables and figures of a sweep again, from its records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dmray.errors import DmrayError
from dmray.reporting import render_summary, write_report
from dmray.tracking import SweepFolder

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_out, _err = Console(), Console(stderr=True)


@app.command()
def main(
    sweep_dir: Annotated[Path, typer.Argument(help="the folder of a sweep, for example runs/quickstart")],
) -> None:
    """Write report.md, report.html, figures and CSV files into SWEEP_DIR/report, and print the tables."""
    place = sweep_dir.expanduser().resolve()
    folder = SweepFolder(place.parent, place.name)
    try:
        paths = write_report(folder)
        _out.print(render_summary(folder))
    except DmrayError as mistake:
        _err.print("error:", str(mistake), style="bold red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    _out.print(f"report: {paths.html}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
