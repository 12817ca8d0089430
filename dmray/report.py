"""`python -m dmray.report SWEEP_DIR`: the tables and figures of a sweep again, from its records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmray.command_line import new_app, out, told
from dmray.reporting import render_summary, write_report
from dmray.tracking import SweepFolder

app = new_app()


@app.command()
def main(
    sweep_dir: Annotated[Path, typer.Argument(help="the folder of a sweep, for example runs/quickstart")],
) -> None:
    """Write report.md, report.html, figures and CSV files into SWEEP_DIR/report, and print the tables."""
    place = sweep_dir.expanduser().resolve()
    folder = SweepFolder(place.parent, place.name)
    with told():
        paths = write_report(folder)
        out.print(render_summary(folder))
    out.print(f"report: {paths.html}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
