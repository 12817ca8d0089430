"""`python -m dmray.doctor`: check this machine; with `--calibrate`, also measure its speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from dmray.cli.shared import check_writable, err, new_app, out, report_errors
from dmray.errors import SpecError
from dmray.planning.calibration import calibration_file, hardware_name, save_calibration
from dmray.terminal import FittingTable

app = new_app()


@app.command()
def main(
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Also measure the speed, so that --plan can estimate hours.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --calibrate: also measure a busy machine; plans will say so.")
    ] = False,
    storage: Annotated[Path, typer.Option(help="The folder whose free disk space is checked.")] = Path("runs"),
    mlflow_uri: Annotated[str | None, typer.Option(help="Also check that this MLflow server answers.")] = None,
) -> None:
    """Check processor, GPU, packages, simulators and disk of this machine, and say how to install what is missing.

    Exit status 1 if something necessary is missing.
    """
    from dmray.driver.diagnosis import diagnose

    with report_errors():
        if force and not calibrate:
            raise SpecError("--force: only --calibrate uses it; add --calibrate, or leave it out")
        findings = list(diagnose(storage, mlflow_uri))
        table = FittingTable(box=None, pad_edge=False, show_header=False)
        for finding in findings:
            colour = {"ok": "green", "missing": "red", "optional": "yellow"}[finding.status]
            table.add_row(f"[{colour}]{finding.status}[/]", finding.name, Text(finding.detail))
        out.print(table)
        if calibrate:
            _calibrate(force)
    raise typer.Exit(int(any(finding.status == "missing" for finding in findings)))


def _calibrate(force: bool) -> None:
    from dmray.planning.measuring import calibrate

    check_writable(calibration_file(hardware_name()), "DMRAY_CACHE")
    err.print(f"measuring {hardware_name()}: a minute or two; run nothing else meanwhile", highlight=False)
    made = calibrate(lambda line: err.print(f"  {line}", highlight=False, markup=False), force=force)
    file = save_calibration(made)
    out.print(f"saved in {file}", highlight=False, soft_wrap=True)
    out.print("to plan for this machine elsewhere, copy the file and give it to --plan --on", highlight=False)
    if made.busy is not None:
        err.print(f"measured on a busy machine: {made.busy}", style="yellow", highlight=False, markup=False)


if __name__ == "__main__":
    app()
