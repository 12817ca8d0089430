"""`python -m dmray.logs SWEEP TRIAL`: print a trial's log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dmray.arguments import MAX_COUNT
from dmray.cli.shared import SweepSource, SweepStorage, new_app, report_errors, tolerate_outages
from dmray.errors import StorageError
from dmray.escaping import plain
from dmray.progress.sweep_handle import SweepHandle, find_sweep, find_trial
from dmray.records import TrialFolder
from dmray.records.disk import open_file
from dmray.trial.log import lines_of_attempt

app = new_app()


@app.command()
def main(
    sweep: SweepSource,
    trial: Annotated[str, typer.Argument(help="The trial's id, or the beginning or end of it.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the trial is done.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, max=MAX_COUNT, help="Only the lines of this attempt.")] = None,
    storage: SweepStorage = None,
) -> None:
    """Print a trial's log.txt: attempts (host, process, device), evaluations, checkpoints, warnings, errors."""
    with report_errors(), find_sweep(sweep, storage) as found:
        folder = find_trial(found, trial)
        found.read_log(folder)
        content = _from(folder.log, 0)
        text = content.decode(errors="replace")
        shown = text if attempt is None else lines_of_attempt(text, attempt)
        if not shown and not follow:
            which = f" of attempt {attempt}" if attempt else ""
            raise StorageError(f"{found.where}: {folder.path.name}: its log.txt has no lines{which}")
        whole = len(content) if not follow else content.rfind(b"\n") + 1  # the rest of a line is printed when it ends
        if attempt is None:
            shown = content[:whole].decode(errors="replace")
        typer.echo(plain(shown), nl=False)
        if follow:
            _follow(found, folder, whole)


def _from(log: Path, offset: int) -> bytes:
    """A log's bytes from `offset` on; none if there is no log.

    Raises:
        StorageError: what stands there is no file, or cannot be read.
    """
    try:
        with open_file(log) as stream:
            stream.seek(offset)
            return stream.read()
    except FileNotFoundError:
        return b""


def _follow(found: SweepHandle, folder: TrialFolder, offset: int) -> None:
    try:
        while True:
            ended = folder.done.exists()  # checked before the last read, so that no line is missed
            new = _from(folder.log, offset)
            new = new if ended else new[: new.rfind(b"\n") + 1]  # no letter and no escape code is cut in two
            offset += len(new)
            typer.echo(plain(new.decode(errors="replace")), nl=False)
            if ended:
                return
            time.sleep(found.look_every_s)
            with tolerate_outages():
                found.read_log(folder)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    app()
