"""`python -m dmray.status SWEEP`: show the progress of a sweep, from its records."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from typing import Annotated

import typer
from rich.live import Live

from dmray.cli.shared import SweepSource, SweepStorage, new_app, out, report_errors, tolerate_outages
from dmray.escaping import one_line
from dmray.planning.manifest import read_manifest
from dmray.progress.progress import Follower
from dmray.progress.search_progress import awaits_trials
from dmray.progress.summary import Summary, follower_of, summarize
from dmray.progress.summary_view import SweepView, text
from dmray.progress.sweep_handle import SweepHandle, find_sweep

app = new_app()
_OK, _NO_DRIVER, _FAILED = 0, 3, 4


@app.command()
def main(
    sweep: SweepSource,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until no driver is running.")] = False,
    every_s: Annotated[
        float | None,
        typer.Option("--every", min=0.1, help="Seconds between updates. Default: 1, for an object store 5."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per update.")] = False,
    storage: SweepStorage = None,
) -> None:
    """Show the progress of a sweep.

    Exit status 0: a driver is running, or every trial has a result or was stopped early. 3: some trials have not
    ended, and no driver is running. 4: every trial has ended, and some have failed.
    """
    with report_errors(), find_sweep(sweep, storage) as found:
        view = _View(found)
        summary = view.read()
        if watch:
            summary = _watch(view, summary, every_s or found.look_every_s, as_json)
        else:
            _show(summary, as_json)
        if _exit_status(summary) != _OK and not as_json:
            command = found.driver_and_command()[1]
            if command and command.resume_command:
                typer.echo(f"continue with:\n  {one_line(command.resume_command)}")
                if "--only" in command.resume_command:
                    typer.echo("(it runs the trials that --only selects; without --only, all that are not done)")
    raise typer.Exit(_exit_status(summary))


class _View:
    """Reads a sweep once or repeatedly."""

    def __init__(self, found: SweepHandle) -> None:
        self._found = found
        self._follower: Follower | None = None
        self._manifest_time_ns = 0

    def read(self) -> Summary:
        """The current progress."""
        self._found.read_progress()
        manifest = self._found.folder.manifest
        time_ns = manifest.stat().st_mtime_ns if manifest.exists() else 0
        if self._follower is None or time_ns != self._manifest_time_ns:  # a search adds trials
            self._follower, self._manifest_time_ns = follower_of(self._found.folder), time_ns
        summary = replace(summarize(self._follower), folder=self._found.where)
        if summary.at_work or not summary.ended:
            return summary
        histories = self._follower.progress.trials
        statuses = {trial_id: history.status for trial_id, history in histories.items()}
        return replace(summary, search_open=awaits_trials(read_manifest(self._found.folder), statuses))

    def read_or(self, previous: Summary) -> Summary:
        """The current progress; `previous` if the object store does not answer."""
        with tolerate_outages():
            return self.read()
        return previous


def _watch(view: _View, summary: Summary, every_s: float, as_json: bool) -> Summary:
    """Show the progress repeatedly until no driver is running. Returns the last summary."""
    try:
        if as_json or not out.is_terminal:
            while True:
                _show(summary, as_json)
                if not summary.at_work:
                    return summary
                time.sleep(every_s)
                summary = view.read_or(summary)
        with Live(SweepView(summary, with_driver=True, live=True), console=out, auto_refresh=False) as live:
            while summary.at_work:
                time.sleep(every_s)
                summary = view.read_or(summary)
                live.update(SweepView(summary, with_driver=True, live=True), refresh=True)
    except KeyboardInterrupt:
        pass
    return summary


def _show(summary: Summary, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(summary)))
    elif out.is_terminal:
        out.print(SweepView(summary, with_driver=True), highlight=False)
    else:
        typer.echo(text(summary))


def _exit_status(summary: Summary) -> int:
    if summary.at_work or summary.done:
        return _OK
    return _FAILED if summary.ended else _NO_DRIVER


if __name__ == "__main__":
    app()
