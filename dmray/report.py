"""`python -m dmray.report SWEEP_DIR`: the tables and figures of a sweep again, from its records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmray.command_line import new_app, out, told
from dmray.reporting import render_summary, write_report
from dmray.storage import SweepCopy, is_url, split_url
from dmray.tracking import SweepFolder

app = new_app()


@app.command()
def main(
    sweep_dir: Annotated[str, typer.Argument(help="a sweep: runs/quickstart, s3://bucket/prefix/quickstart")],
) -> None:
    """Write report.md, report.html, figures and CSV files into SWEEP_DIR/report, and print the tables."""
    with told():
        copy = SweepCopy.to_read(*split_url(sweep_dir)) if is_url(sweep_dir) else None
        if copy:
            copy.open()
        place = Path(sweep_dir).expanduser().resolve()
        folder = copy.folder if copy else SweepFolder(place.parent, place.name)
        paths = write_report(folder)
        out.print(render_summary(folder))
        if copy:
            copy.push()
    out.print(f"report: {paths.html}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
