"""`python -m dmray.explain SWEEP TRIAL`: what is known of a trial, and what to do next."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dmray.cli.shared import SweepStorage, new_app, out, report_errors
from dmray.errors import StorageError
from dmray.files import user_path
from dmray.progress.explanation import Explanation, NextStep, explain
from dmray.progress.explanation_view import lines
from dmray.progress.sweep_handle import find_sweep, listed
from dmray.redaction import without_secrets

app = new_app()


@app.command()
def main(
    sweep: Annotated[
        str, typer.Argument(help="A sweep's file, folder or URL; or, without TRIAL, a trial's folder or URL.")
    ],
    trial: Annotated[
        str | None,
        typer.Argument(help="The trial's id, or the beginning or end of it. In a sweep's folder it is enough."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    storage: SweepStorage = None,
) -> None:
    """Explain a trial: what it is, how far it is, what happened, why it failed, its files, and what to do next."""
    with report_errors():
        place, key = (sweep, trial) if trial is not None else split_trial(sweep)
        with find_sweep(place, storage) as found:
            explanation = explain(found, key)
    if as_json:
        typer.echo(without_secrets(json.dumps(_content(explanation))))
        return
    for line in lines(explanation, out.width):
        style = "" if line.startswith(" ") else "bold"
        out.print(without_secrets(line), style=style, highlight=False, markup=False, soft_wrap=True)


def split_trial(source: str) -> tuple[str, str]:
    """The sweep and the trial that one argument names: a trial's folder or URL, or a trial of the sweep in this folder.

    Raises:
        StorageError: it names neither.
    """
    sweep, found, name = source.rstrip("/").rpartition("/trials/")
    if found and sweep and name and "/" not in name:
        return sweep, name
    folder = user_path(source).absolute()
    if folder.parent.name == "trials" and os.path.isdir(folder):
        return str(folder.parent.parent), folder.name
    if os.path.isfile("sweep.json") and not os.path.exists(folder):
        return ".", source
    if os.path.isfile(folder / "sweep.json"):
        which = "add the trial's id, or the beginning or end of it"
        raise StorageError(f"{source}: a sweep, not a trial; {which}{_begun_in(folder)}")
    raise StorageError(
        f"{source}: not the folder of a trial, and the current folder is not that of a sweep; name the sweep and the "
        "trial: dmray explain runs/quickstart TRIAL"
    )


def _begun_in(sweep: Path) -> str:
    """Some trials of a sweep, for a message."""
    names = sorted(path.name for path in sweep.glob("trials/*"))
    return f":{listed(names)}" if names else ""


def _content(explanation: Explanation) -> dict[str, Any]:
    steps = [NextStep(*step)._asdict() for step in explanation.next_steps]
    return {**asdict(explanation), "next_steps": steps}


if __name__ == "__main__":
    app()
