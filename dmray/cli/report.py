"""`python -m dmray.report SWEEP...`: write the report of sweeps from their records."""

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
        typer.Argument(help="Sweep files, or folders or URLs of sweeps: runs/quickstart, s3://bucket/runs/quickstart."),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="The method to compare all others with. Default: each method's own baselines.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Only trials of this protocol, for example d4rl-mujoco.")] = None,
    into: Annotated[Path | None, typer.Option(help="Folder to write. Default: SWEEP/report of the first.")] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="CSV file of published results to show beside ours (docs/report.md); may be repeated."),
    ] = None,
) -> None:
    """Write report.html, report.md, tables.tex, CSV files and figures, and print the tables."""
    with report_errors():
        results = load_results(*sweeps, protocol=protocol)
        paths = write_report_of(results, sweeps[0], into, baseline, reference or [])
    out.print(results)
    out.print(f"report: {paths.html}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
