"""MLflow as a projection of a sweep's ledgers, made by one writer that training never waits for.

    sweep -> cell (all seeds of one setting) -> trial        one experiment `dmray/<sweep>`

`advance` brings over what is new in the ledgers. When the store does not answer, it says so once, keeps nothing but
its place, and goes on later; the ledgers are the spool. Whatever went wrong, the run concerned is projected anew, and
what is in the store already is recognised (`dmray.mlflow_mirror.trial_mirror`), so nothing is there twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from dmray.errors import StorageError, TrackingError
from dmray.mlflow_mirror.champions import Champion, Finished, champions
from dmray.mlflow_mirror.labels import (
    seed_group_name,
    seed_group_params,
    seed_group_tags,
    sweep_tags,
    trial_name,
    trial_params,
    trial_tags,
)
from dmray.mlflow_mirror.run_book import RunBook, RunWanted
from dmray.mlflow_mirror.seed_group_mirror import SeedGroupMirror, end_ms, end_status
from dmray.mlflow_mirror.store import RunStore, StoreError, open_store
from dmray.mlflow_mirror.trial_mirror import TrialMirror
from dmray.records.folders import SweepFolder
from dmray.specs import SweepSpec, TrialSpec

_log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 30.0
_CLOSING_TRIES = 3


@dataclass(frozen=True)
class Lag:
    """How far MLflow is behind: ledger records not known to be there, since when, and why (None: it works)."""

    records: int
    behind_s: float
    problem: str | None


class MlflowMirror:
    """The one writer of a sweep's runs. Not for two threads at once, except `lag`."""

    def __init__(self, store: RunStore, folder: SweepFolder, sweep: SweepSpec, trials: Sequence[TrialSpec]) -> None:
        self._store, self._folder, self._sweep = store, folder, sweep
        self._sweep_id = folder.sweep_id()
        self._trials = [TrialMirror(trial, folder.trial(trial.trial_id)) for trial in trials]
        by_cell = sorted(self._trials, key=lambda mirror: mirror.trial.seed_group_id)
        seed_groups = groupby(by_cell, key=lambda mirror: mirror.trial.seed_group_id)
        stopping = sweep.early_stopping is not None
        self._cells = {
            seed_group_id: SeedGroupMirror(list(members), stopping) for seed_group_id, members in seed_groups
        }
        self._book: RunBook | None = None
        self._sweep_run: str | None = None
        self._unreadable: set[str] = set()
        self._problem: str | None = None
        self._pause_s, self._next_try = 0.0, 0.0
        self._up_to_date_at = time.monotonic()

    @classmethod
    def open(cls, uri: str | None, folder: SweepFolder, sweep: SweepSpec, trials: Sequence[TrialSpec]) -> MlflowMirror:
        """A mirror in the MLflow at `uri` (None: the SQLite file of the storage folder), with the sweep's run made.

        Raises:
            TrackingError: nothing answers there within about ten seconds, or it is no place for runs.
        """
        return cls(open_store(uri, folder), folder, sweep, trials)

    @property
    def lag(self) -> Lag:
        """Reads the ledgers; cheap enough to show once a second."""
        records = sum(trial.behind for trial in self._trials)
        behind_s = time.monotonic() - self._up_to_date_at if records or self._problem else 0.0
        return Lag(records, behind_s, self._problem)

    def advance(self) -> bool:
        """Bring over what is new; True when all of it is in the store. Never raises for the store's troubles."""
        if time.monotonic() < self._next_try:
            return False
        problem = self._pass()
        self._note(problem)
        return problem is None

    def close(self, report: Path | None = None) -> Lag:
        """Bring over the rest, end every run (FINISHED, FAILED or KILLED), attach the report's folder; what is missing.

        May be called again, for example with a report that is made later.
        """
        for left in reversed(range(_CLOSING_TRIES)):
            self._next_try = 0.0
            if self.advance() and self._end(report):
                break
            time.sleep(1.0 if left else 0.0)
        lag = self.lag
        if lag.problem:
            _log.warning(
                "MLflow lacks %d records (%s); --resume adds them, or: python -m dmray.track replay %s",
                *(lag.records, lag.problem, self._folder.path),
            )
        return lag

    def register(self) -> list[Champion]:
        """Put the sweep's best policies into the model registry, after `close`; which they are.

        Raises:
            TrackingError: MLflow does not take them.
        """
        finished = [
            Finished(trial.trial, trial.run_id, trial.final)
            for trial in self._trials
            if trial.run_id is not None
            and trial.final is not None
            and self._cells[trial.trial.seed_group_id].comparable
        ]
        chosen = champions(finished, self._sweep.name)
        try:
            for champion in chosen:
                self._store.register(champion, self._sweep_id)
        except StoreError as cause:
            raise TrackingError(f"MLflow's model registry does not take the champions: {cause}") from cause
        return chosen

    def _pass(self) -> str | None:
        """Follow every ledger once; the last problem met."""
        problem: str | None = None
        try:
            self._runs()
        except StoreError as cause:
            self._book = None
            return str(cause)
        for trial in self._trials:
            try:
                self._follow(trial)
            except StoreError as cause:
                problem = str(cause)
                self._doubt(trial)
                if not cause.refused:  # the others would fare no better
                    break
            except StorageError as cause:
                self._set_aside(trial, cause)
        return problem

    def _follow(self, trial: TrialMirror) -> None:
        trial_id = trial.trial.trial_id
        if trial_id in self._unreadable or (trial.done and trial.run_id is not None):
            return
        if trial.run_id is None and (found := self._runs().find(trial_id)) is not None:
            self._ensure_runs(trial, time.time())
            trial.adopt(self._store, found)
        while records := trial.read():
            if trial.run_id is None:
                trial.created(self._ensure_runs(trial, records[0].time_s))
            trial.log(self._store, records)
        if trial.run_id is not None:
            self._cells[trial.trial.seed_group_id].update(self._store)

    def _runs(self) -> RunBook:
        if self._book is None:
            book = RunBook(self._store, self._sweep_id)
            tags = sweep_tags(self._sweep, self._sweep_id, len(self._trials))
            begun_s = min((trial.begun_s or time.time() for trial in self._trials), default=time.time())
            run = book.ensure(RunWanted(self._sweep.name, tags, {}, begun_s))
            self._store.log(run.run_id, tags=tags)  # another start may have another plan
            if run.status != "RUNNING":
                self._store.set_status(run.run_id, "RUNNING")
            self._book, self._sweep_run = book, run.run_id
        return self._book

    def _ensure_runs(self, trial: TrialMirror, start_s: float) -> str:
        """The id of the trial's run; its cell's run is made first."""
        book, spec = self._runs(), trial.trial
        assert self._sweep_run is not None
        tags = seed_group_tags(spec, self._sweep, self._sweep_id, self._sweep_run)
        seed_group = book.ensure(RunWanted(seed_group_name(spec), tags, seed_group_params(spec), start_s))
        if self._cells[spec.seed_group_id].run_id is None:
            self._cells[spec.seed_group_id].adopt(self._store, seed_group)
        tags = trial_tags(spec, self._sweep, self._sweep_id, seed_group.run_id)
        return book.ensure(RunWanted(trial_name(spec), tags, trial_params(spec), start_s)).run_id

    def _doubt(self, trial: TrialMirror) -> None:
        """A call for this trial failed, and may have taken effect: believe nothing about its runs any more."""
        trial.forget()
        self._cells[trial.trial.seed_group_id].forget()
        self._book = None

    def _set_aside(self, trial: TrialMirror, cause: StorageError) -> None:
        self._unreadable.add(trial.trial.trial_id)
        _log.error("%s", cause)

    def _end(self, report: Path | None) -> bool:
        assert self._sweep_run is not None
        try:
            for trial in self._trials:
                trial.stop(self._store)
                trial.save_drawings(self._store)
            for seed_group in self._cells.values():
                seed_group.stop(self._store)
            for path, place in ((self._folder.manifest, ""), (report, "report")):
                if path is not None and path.exists():
                    self._store.save(self._sweep_run, path, place)
            self._store.set_status(self._sweep_run, end_status(self._trials), end_ms(self._trials))
        except StoreError as cause:
            self._note(str(cause))
            return False
        return True

    def _note(self, problem: str | None) -> None:
        """Remember whether the store works; tell the log when that changes; try ever less often while it does not."""
        if problem is None:
            if self._problem is not None:
                _log.info("MLflow has caught up")
            self._pause_s, self._up_to_date_at = 0.0, time.monotonic()
        else:
            if self._problem is None:
                _log.warning("MLflow takes no records (%s); training goes on, they follow later", problem)
            self._pause_s = min(max(1.0, 2 * self._pause_s), _LONGEST_PAUSE_S)
            self._next_try = time.monotonic() + self._pause_s
        self._problem = problem
