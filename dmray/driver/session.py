"""A sweep from start to end: lock, trial states, checks, runner, progress, trackers, report."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console

from dmray.coordination.commands import listen_for_commands, read_command, send_command, wait_for_resume
from dmray.driver import preflight
from dmray.driver.store_session import Refresh, sweep_lock
from dmray.errors import SpecError
from dmray.files import remove_stale_parts
from dmray.interruption import interruptible
from dmray.periodic_thread import PeriodicThread
from dmray.planning.disk_space import require_space_for
from dmray.planning.manifest import write_manifest
from dmray.planning.plan import Plan
from dmray.planning.trial_filter import ALL_TRIALS, TrialFilter, select_trials
from dmray.progress.changes import changed_conditions, changes
from dmray.progress.extensions import find_extensions
from dmray.progress.progress import Follower
from dmray.progress.search_progress import check_filter, grown
from dmray.progress.summary import Summary, summarize
from dmray.progress.summary_view import ProgressView
from dmray.progress.trial_status import (
    DONE,
    TrialStatus,
    in_other_shards,
    moved_text,
    restore_done_markers,
    to_run,
    trial_statuses,
)
from dmray.records import SweepFolder, provenance
from dmray.records.phase import PhaseWriter
from dmray.specs import TrialSpec
from dmray.trackers.table import Tracked, Tracker, check_trackers, open_trackers, wanted_trackers

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """Runs trials, for example on Ray or in this process."""

    def run(self, plan: Plan, todo: Sequence[TrialSpec], folder: SweepFolder, refresh: Refresh) -> Sequence[TrialSpec]:
        """Run `todo` until each trial has finished, failed or been paused. Returns those that were paused.

        How each trial ended is recorded in its folder.
        """


ReportWriter = Callable[[SweepFolder], Path]  # writes the report of a sweep's folder, returns the report's folder
OnProgress = Callable[[Summary], None]
_PROGRESS_EVERY_S = 1.0


def run_sweep(
    plan: Plan,
    folder: SweepFolder,
    runner: Runner,
    write_report: ReportWriter,
    *,
    resume: bool,
    console: Console | None = None,
    on_progress: OnProgress | None = None,
    trial_filter: TrialFilter = ALL_TRIALS,
    resume_command: str = "",
) -> dict[str, TrialStatus]:
    """Run the trials that `trial_filter` selects and that have not ended, then write the report.

    With a search: round by round, then the trials of the report.

    Returns the status of each trial afterwards. Progress is shown on `console`. `on_progress` is called with it every
    second, from a thread, and once at the end. Meanwhile the sweep can be paused and stopped with the commands of
    `dmray.coordination.commands`. `resume_command` is the shell command that continues the sweep, shown to users.

    Raises:
        SweepInterrupted: a signal, or `dmray stop --now`, ended the sweep; see `dmray.interruption`.
        DatasetError: the file of a data set is not on this machine, or its task has no simulator here.
        StorageError: the folder cannot be written, another driver runs the sweep, or the sweep was started before and
            `resume` is false.
        MissingPackageError: the package of a tracker is not installed.
        TrackingError: a tracker's server does not answer at the first start of the sweep. (Later outages are tolerated,
            and so is a server that does not answer when the sweep is continued.)
        ClusterError: a trial needs more resources than the machines have.
    """
    check_filter(plan.sweep, trial_filter)
    check_trackers(plan.sweep.tracking)
    folder.make_writable()
    with (
        interruptible() as interruption,
        sweep_lock(plan, folder) as refresh,
        listen_for_commands(folder, resume_command),
    ):
        phases = driver_phases(folder)
        phases.leave()  # that of a driver that was killed
        for written in (folder.path, folder.datasets):
            remove_stale_parts(written)
        plan = grown(plan, folder)
        todo = _checked_todo(plan, folder, resume, trial_filter, phases)
        while True:  # once; with a search once for each round
            with _mirrored(plan, folder, phases) as attach:
                write_manifest(plan, folder)  # only now: if a tracker does not answer, the start has changed nothing
                ended = True
                if todo:
                    with (
                        _shown(plan, folder, console, on_progress),
                        interruption.saving(lambda: send_command(folder, "stop")),
                    ):
                        ended = _run(plan, todo, folder, runner, refresh)
                following = grown(plan, folder) if ended else plan
                if not _goes_on(plan, following, folder, trial_filter):
                    if following is not plan:
                        write_manifest(following, folder)
                    with phases.within("writing_report"):
                        attach(write_report(folder))
                    return trial_statuses(following, folder)
            plan = following
            todo = _todo(plan, trial_statuses(plan, folder), True, trial_filter)
            require_space_for(todo, plan.sweep, folder.path)


def _checked_todo(
    plan: Plan, folder: SweepFolder, resume: bool, trial_filter: TrialFilter, phases: PhaseWriter
) -> tuple[TrialSpec, ...]:
    """The trials to run first, after all checks of a start."""
    states = trial_statuses(plan, folder)
    restore_done_markers(plan, folder)
    extended = find_extensions(plan, folder, states)
    todo = _todo(plan, states, resume, trial_filter, extended)
    if elsewhere := in_other_shards(plan, states, trial_filter):
        _log.warning("%s", moved_text(elsewhere, trial_filter))
    selected = select_trials(plan, trial_filter)
    if not todo and plan.search is None:
        left = sum(states[trial.trial_id] not in DONE for trial in selected)
        if left and trial_filter.retry_failed:
            raise SpecError(
                f"retry_failed: no selected trial of {folder.path} has failed; resume, without retry_failed, runs the "
                f"{left} that have not ended"
            )
        failed = f"; {left} failed, and are run again with retry_failed" if left else ""
        _log.info("nothing to run: %d of %d trials are done%s", len(selected) - left, len(selected), failed)
    elif resume and not folder.manifest.exists():
        _log.info("%s: no sweep was started there before; it starts now", folder.path)
    later = selected if plan.search is not None and todo else ()  # rounds use their data sets
    with phases.within("checking"):
        checked = preflight.check((*todo, *later), folder.datasets, phases)
    require_space_for(todo, plan.sweep, folder.path)
    if todo:
        fingerprints = {name: each.fingerprint for name, each in checked.items()}
        warn_of_changes(plan, folder, states, fingerprints, extended)
        folder.write_data_warnings({name: each.warnings for name, each in checked.items()})
    if (difference := changes(plan, folder, states, extended)) and difference.any:
        _log.info("the sweep file has changed: %s", difference)
    return todo


def _todo(
    plan: Plan,
    states: Mapping[str, TrialStatus],
    resume: bool,
    trial_filter: TrialFilter,
    extended: Collection[str] = (),
) -> tuple[TrialSpec, ...]:
    """As `to_run`, without the failed trials of a search's earlier rounds: later rounds were proposed by their failure.

    With `retry_failed` these are run too, and later rounds are proposed anew.
    """
    over = plan.search.over if plan.search is not None and not trial_filter.retry_failed else frozenset()
    return tuple(trial for trial in to_run(plan, states, resume, trial_filter, extended) if trial.trial_id not in over)


def _goes_on(plan: Plan, following: Plan, folder: SweepFolder, trial_filter: TrialFilter) -> bool:
    """Whether a search has trials to run that `plan` did not have, and the sweep was not stopped meanwhile."""
    known = set(plan.trial_ids)
    new = [trial for trial in select_trials(following, trial_filter) if trial.trial_id not in known]
    for group in following.search.without_choice if following.search is not None else ():
        _log.warning("search: no setting of %s finished, so none is chosen (--retry-failed runs them again)", group)
    if not new or trial_filter.retry_failed or not wait_for_resume(folder):
        return False
    selecting = sum(map(plan.sweep.is_selection, new))
    if selecting:
        _log.info("search: the next round has %d trials", selecting)
    if selecting < len(new):
        _log.info("search: settings are chosen; %d trials with the seeds of the report follow", len(new) - selecting)
    return True


def driver_phases(folder: SweepFolder) -> PhaseWriter:
    """What writes and logs the phases of the driver, which has the sweep's lock and listens for commands."""
    command = read_command(folder)
    return PhaseWriter(folder.phase, command.number if command else 0, lambda words: _log.info("%s", words))


def warn_of_changes(
    plan: Plan,
    folder: SweepFolder,
    states: Mapping[str, TrialStatus],
    fingerprints: Mapping[str, str],
    extended: Mapping[str, str] | None = None,
) -> None:
    """Say which earlier results will stay apart from new ones, because the data or the code has changed.

    `fingerprints`: of data sets as they are now, by name. `extended`: as in `changes`.
    """
    if extended or any(state is not TrialStatus.WAITING for state in states.values()):
        for warning in changed_conditions(plan, folder, fingerprints, provenance(), extended):
            _log.warning("%s", warning)


@contextlib.contextmanager
def _shown(plan: Plan, folder: SweepFolder, console: Console | None, on_progress: OnProgress | None) -> Iterator[None]:
    """Show the progress during the block. Each view reads the ledgers itself."""

    def follower(whole: bool = False) -> Follower:
        return Follower(folder, plan.trials, plan.sweep.early_stopping, whole=whole)

    with contextlib.ExitStack() as views:
        if console is not None:
            views.enter_context(ProgressView(follower(whole=not console.is_terminal), console))
        if on_progress is not None:
            callback = _ProgressCallback(follower(), on_progress)
            views.callback(callback.end)
            views.enter_context(PeriodicThread(callback.advance, _PROGRESS_EVERY_S, name="dmray-progress"))
        yield


class _ProgressCallback:
    """Calls a function with the summary of a sweep. If the function raises, it is not called again, and `end` warns."""

    def __init__(self, follower: Follower, on_progress: OnProgress) -> None:
        self._follower, self._on_progress = follower, on_progress
        self._error: Exception | None = None

    def advance(self) -> bool:
        if self._error is None:
            summary = summarize(self._follower)
            try:
                self._on_progress(summary)
            except Exception as error:  # noqa: BLE001 - the caller's code, and hours of training must not end with it
                self._error = error
                _log.exception("the progress function failed; it is not called any more")
        return self._error is None

    def end(self) -> None:
        """Call the function once more, after the thread has ended; then warn in the caller's thread if it failed.

        A warning, because a script without logging would not see the log.
        """
        if not self.advance():
            warnings.warn(f"the progress function failed and was not called again: {self._error!r}", stacklevel=2)


def _run(plan: Plan, todo: Sequence[TrialSpec], folder: SweepFolder, runner: Runner, refresh: Refresh) -> bool:
    """Run `todo`, and after each pause the trials that were paused, until none is left (True) or a stop."""
    while todo:
        refresh()  # copies the `run` command to where all workers read it
        before = read_command(folder)
        todo = runner.run(plan, todo, folder, refresh)
        refresh()
        if todo and (
            not wait_for_resume(folder) or read_command(folder) == before
        ):  # no new command: the trials paused by themselves
            return False
    return True


@contextlib.contextmanager
def _mirrored(plan: Plan, folder: SweepFolder, phases: PhaseWriter) -> Iterator[Callable[[Path], None]]:
    """Copy the ledgers to all trackers during the block, completely at its end.

    Yields a function that attaches a report. Each tracker has a thread, so that a slow one delays no other.
    """
    tracking = plan.sweep.tracking
    names = ", ".join(kind.name for kind in wanted_trackers(tracking))
    if not names:
        yield lambda report: None
        return
    started_before = folder.manifest.exists()  # a server that is down must not keep a started sweep from continuing
    with phases.within("connecting_trackers", names):
        trackers = open_trackers(Tracked(folder, plan.sweep, plan.trials, started_before))
    reports: list[Path] = []
    try:
        with contextlib.ExitStack() as threads:
            for tracker in trackers:
                name = f"dmray-{tracker.name.lower()}-mirror"
                threads.enter_context(PeriodicThread(tracker.advance, tracking.flush_every_s, name=name))
            try:
                yield reports.append
            finally:
                for tracker in trackers:
                    tracker.hurry()  # before the wait for the threads
    finally:
        with phases.within("ending_trackers", names):
            for tracker in trackers:
                _close(tracker, reports, folder)


def _close(tracker: Tracker, reports: Sequence[Path], folder: SweepFolder) -> None:
    """Bring a tracker up to date, at the end of a sweep. Whatever it raises, the sweep ends as it did."""
    try:
        tracker.close(*reports)
    except Exception:  # noqa: BLE001 - of any kind: the results are on the disk, and the other trackers are to be closed
        _log.exception(
            "%s: copying the last records failed; to add them: python -m dmray.track replay %s",
            *(tracker.name, folder.path),
        )
