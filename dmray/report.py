"""`python -m dmray.report SWEEP...`: the tables and figures of sweeps, from their records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmray.command_line import new_app, out, told
from dmray.reporting import METHODS, render_summary, write_report
from dmray.tracking import SweepFolder

app = new_app()


@app.command()
def main(
    sweeps: Annotated[list[Path], typer.Argument(help="folders of sweeps, for example runs/quickstart")],
    baseline: Annotated[
        str | None, typer.Option(help=f"what Mamba methods are held against ({', '.join(METHODS)}); else dt, and hdt")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="only this one, for example d4rl-mujoco")] = None,
    into: Annotated[Path | None, typer.Option(help="where to write; else SWEEP/report of the first")] = None,
) -> None:
    """Write report.html, report.md, tables.tex, CSV files and figures, and print the tables."""
    if baseline not in (None, *METHODS):
        raise typer.BadParameter(f"'{baseline}' is none of {', '.join(METHODS)}", param_hint="--baseline")
    places = [sweep.expanduser().resolve() for sweep in sweeps]
    folders = [SweepFolder(place.parent, place.name) for place in places]
    with told():
        paths = write_report(*folders, into=into, baseline=baseline, protocol=protocol)
        out.print(render_summary(*folders, protocol=protocol))
    out.print(f"report: {paths.html}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
