"""`python -m dmray.report SWEEP...`: the tables and figures of sweeps, from their records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmray.cli.shared import new_app, out, report_errors
from dmray.errors import SpecError
from dmray.progress.sweep_handle import locate
from dmray.records import SweepFolder
from dmray.registry import lookup
from dmray.reporting import METHODS, SweepResults, collect, render_results, write_results
from dmray.storage import SweepCopy, is_url
from dmray.tasks import PROTOCOLS

app = new_app()


@app.command()
def main(
    sweeps: Annotated[
        list[str],
        typer.Argument(help="sweeps: their files, or where they are: runs/quickstart, s3://bucket/prefix/quickstart"),
    ],
    baseline: Annotated[
        str | None, typer.Option(help=f"what Mamba methods are held against ({', '.join(METHODS)}); else dt, and hdt")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="only this one, for example d4rl-mujoco")] = None,
    into: Annotated[Path | None, typer.Option(help="where to write; else SWEEP/report of the first")] = None,
) -> None:
    """Write report.html, report.md, tables.tex, CSV files and figures, and print the tables."""
    if baseline not in (None, *METHODS):
        raise typer.BadParameter(f"'{baseline}' is none of {', '.join(METHODS)}", param_hint="--baseline")
    with report_errors():
        if protocol is not None:
            lookup("protocol", protocol, {name: name for name in PROTOCOLS}, SpecError)
        found = [locate(sweep) for sweep in sweeps]
        copies = {(storage, name): SweepCopy.downloaded(storage, name) for storage, name in found if is_url(storage)}
        folders = [copies[at].folder if at in copies else SweepFolder(Path(at[0]), at[1]) for at in found]
        results = collect(*folders, protocol=protocol)
        _check_choices(results, baseline, protocol)
        paths = write_results(results, into or folders[0].report, baseline)
        out.print(render_results(results))
        if into is None and found[0] in copies:
            copies[found[0]].push()
    out.print(f"report: {paths.html}", highlight=False, soft_wrap=True)


def _check_choices(results: SweepResults, baseline: str | None, protocol: str | None) -> None:
    """A choice that nothing answers to would leave an empty report in the place of a full one.

    Raises:
        SpecError: it was made.
    """
    methods = sorted({result.trial.method for result in results.trials})
    if protocol is not None and not methods:
        raise SpecError(f"--protocol {protocol}: no trial here is of it")
    if baseline is not None and baseline not in methods:
        raise SpecError(f"--baseline {baseline}: no trial here is of it, there are {', '.join(methods)}")


if __name__ == "__main__":
    app()
