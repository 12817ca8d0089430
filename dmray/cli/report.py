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
        typer.Argument(help="Sweeps: their folders (runs/quickstart), URLs (s3://bucket/prefix/quickstart) or files."),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="Compare all methods with this one. Default: each method with its own baselines.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Only this protocol, for example d4rl-mujoco.")] = None,
    into: Annotated[Path | None, typer.Option(help="The folder to write to. Default: SWEEP/report.")] = None,
) -> None:
    """Write report.html, report.md, tables.tex, CSV files and figures, and print the tables."""
    with report_errors():
        results = load_results(*sweeps, protocol=protocol)
        paths = write_report_of(results, sweeps[0], into, baseline)
    out.print(results)
    out.print(f"report: {paths.html}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
