"""`python -m dmray.logs SWEEP TRIAL`: what a trial's attempts did."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dmray.command_line import new_app, told
from dmray.errors import StorageError
from dmray.execution.finding import find_sweep, find_trial
from dmray.execution.trial_log import lines_of_attempt
from dmray.tracking import TrialFolder

app = new_app()
_LOOK_EVERY_S = 0.5


@app.command()
def main(
    sweep: Annotated[Path, typer.Argument(help="The sweep's file, or its folder: runs/quickstart.")],
    trial: Annotated[str, typer.Argument(help="The trial's id, or its beginning, or its end.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the trial is done, or Ctrl-C.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="What one attempt wrote; else all of it.")] = None,
    storage: Annotated[Path | None, typer.Option(help="Where the file's sweep is, as given to dmray.sweep.")] = None,
) -> None:
    """Print a trial's log.txt: host, process and device of its attempts, evaluations, checkpoints, warnings, errors."""
    with told():
        folder = find_trial(find_sweep(sweep, storage), trial)
        text = folder.log.read_text(errors="replace") if folder.log.exists() else ""
        shown = text if attempt is None else lines_of_attempt(text, attempt)
        if not shown and not follow:
            raise StorageError(f"{folder.log}: nothing there" + (f" of attempt {attempt}" if attempt else ""))
        typer.echo(shown, nl=False)
        if follow:
            _follow(folder, len(text.encode()))


def _follow(folder: TrialFolder, offset: int) -> None:
    try:
        while True:
            ended = folder.done.exists()  # before the last look
            if folder.log.exists():
                with folder.log.open("rb") as stream:
                    stream.seek(offset)
                    new = stream.read()
                offset += len(new)
                typer.echo(new.decode(errors="replace"), nl=False)
            if ended:
                return
            time.sleep(_LOOK_EVERY_S)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    app()
