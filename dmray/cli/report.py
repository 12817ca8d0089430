"""`python -m dmray.report SWEEP...`: the tables and figures of sweeps, from their records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmray.api import load_results, write_report_of
from dmray.cli.shared import new_app, out, report_errors

app = new_app()


@app.command()
def main(
    sweeps: Annotated[
        list[str],
        typer.Argument(help="sweeps: their files, or where they are: runs/quickstart, s3://bucket/prefix/quickstart"),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="The method to compare all others with; else each method's own baselines.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="only this one, for example d4rl-mujoco")] = None,
    into: Annotated[Path | None, typer.Option(help="where to write; else SWEEP/report of the first")] = None,
) -> None:
    """Write report.html, report.md, tables.tex, CSV files and figures, and print the tables."""
    with report_errors():
        results = load_results(*sweeps, protocol=protocol)
        paths = write_report_of(results, sweeps[0], into, baseline)
    out.print(results)
    out.print(f"report: {paths.html}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
