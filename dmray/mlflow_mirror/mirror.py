"""MLflow as a copy of a sweep's ledgers, written by one thread that training never waits for.

`advance` brings over what is new in the ledgers. When the store does not answer, it says so once, keeps nothing but
its place, and continues later: nothing is lost, since the ledgers have it all. After any error the run concerned is
made anew, and what is in the store already is recognised (`dmray.mlflow_mirror.trial_mirror`), so nothing is there
twice. How runs, tags and metrics are named is in `dmray.mlflow_mirror.layout`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from dmray.errors import StorageError, TrackingError, TrackingUnavailableError
from dmray.mlflow_mirror.layout import (
    CONTINUED,
    GROUP_COMMITTED,
    LEVEL,
    MODEL,
    PARENT,
    REPORT,
    SEED_GROUP,
    SELECTION,
    SUMMARY,
    continued_tags,
    group_curve,
    group_key,
    identity_tags,
    model_label,
    note_with_tables,
    seed_group_curve,
    seed_group_name,
    seed_group_params,
    seed_group_points,
    seed_group_tags,
    sweep_tags,
    trial_name,
    trial_params,
    trial_tags,
)
from dmray.mlflow_mirror.model_registry import BestPolicy, FinishedTrial, best_policies
from dmray.mlflow_mirror.outage import CLOSING_S, Lag, Outage
from dmray.mlflow_mirror.reevaluations import mirror_reevaluations
from dmray.mlflow_mirror.store import (
    POINTS_PER_BATCH,
    LateStore,
    RunStore,
    RunWanted,
    StoredRun,
    StoreError,
    SweepRuns,
    open_store,
)
from dmray.mlflow_mirror.trial_mirror import TrialMirror
from dmray.planning.settings import details_of
from dmray.progress.trial_status import TrialStatus
from dmray.records import ResultIdentity
from dmray.records.folders import SweepFolder
from dmray.records.identity import differing_parts
from dmray.specs import SweepSpec, TrialSpec

_log = logging.getLogger(__name__)


class SeedGroupMirror:
    """The run of a seed group, with the mean and the spread of its trials' scores.

    A mean over the seeds that early stopping left would be biased. So a group of which seeds were stopped has no
    aggregates, and where seeds may yet be stopped (`whole_only`) a group has none before all have ended.
    """

    def __init__(self, whole_only: bool = False) -> None:
        self.trials: list[TrialMirror] = []
        self.waiting: list[TrialMirror] = []  # trials of the same settings that have not begun
        self._whole_only = whole_only
        self.forget()

    def forget(self) -> None:
        """Start over: nothing that is believed about the store is kept."""
        self.run_id: str | None = None
        self._run_status: str | None = None
        self._seeds: set[int] = set()  # the numbers of finished seeds that have an aggregate
        self._metrics: frozenset[str] = frozenset()  # the names of those that the run had when it was adopted
        self._curve_of = 0  # the number of seeds whose mean curve is complete

    def adopt(self, store: RunStore, run: StoredRun) -> None:
        """Take over the run, new or from before."""
        self.run_id, self._run_status = run.run_id, run.status
        self._seeds = store.steps(run.run_id, GROUP_COMMITTED) if GROUP_COMMITTED in run.metrics else set()
        self._metrics, self._curve_of = frozenset(run.metrics), 0

    def update(self, store: RunStore) -> None:
        """Log the aggregates when another seed has finished; a group ends with its last trial."""
        assert self.run_id is not None
        finished = [trial for trial in self.trials if trial.status is TrialStatus.FINISHED and trial.final is not None]
        if finished and len(finished) not in self._seeds and self.comparable:
            last = [trial.final for trial in finished if trial.final is not None]
            best = [trial.best for trial in finished if trial.best is not None]
            store.log(self.run_id, seed_group_points(last, best, max(trial.ended_s for trial in finished)))
            self._seeds.add(len(finished))
        if finished and self.comparable and all(trial.ended for trial in self.all) and self._curve_of != len(self.all):
            self._log_curve(store, finished)
        self._set_run_status(store, "FINISHED" if all(trial.ended for trial in self.all) else "RUNNING")

    def _log_curve(self, store: RunStore, finished: Sequence[TrialMirror]) -> None:
        """Log the mean learning curve of the finished seeds, after all have ended: MLflow cannot change it later."""
        assert self.run_id is not None
        name, ended_s = group_curve(len(self.all)), max(trial.ended_s for trial in finished)
        present = store.steps(self.run_id, name) if name in self._metrics else set()
        points = seed_group_curve(name, [trial.curve() for trial in finished], present, ended_s)
        for first in range(0, len(points), POINTS_PER_BATCH):
            store.log(self.run_id, points[first : first + POINTS_PER_BATCH])
        self._curve_of = len(self.all)

    @property
    def all(self) -> list[TrialMirror]:
        """Its trials and those that may become so."""
        return [*self.trials, *self.waiting]

    @property
    def comparable(self) -> bool:
        """Whether a mean over its finished seeds is unbiased."""
        stopped = any(trial.status is TrialStatus.STOPPED_EARLY for trial in self.trials)
        return not stopped and (not self._whole_only or all(trial.ended for trial in self.all))

    def stop(self, store: RunStore) -> None:
        """The sweep ends here."""
        if self.run_id is not None:
            self._set_run_status(store, end_status(self.all))

    def _set_run_status(self, store: RunStore, status: str) -> None:
        if status != self._run_status and self.run_id is not None:
            store.set_status(self.run_id, status, end_ms(self.trials))
            self._run_status = status


def end_ms(trials: Sequence[TrialMirror]) -> int | None:
    """The latest end of `trials`; None when none has ended."""
    return int(max((trial.ended_s for trial in trials), default=0.0) * 1000) or None


def end_status(trials: Sequence[TrialMirror]) -> str:
    """MLflow's status of a run that consists of `trials`, when it ends now."""
    if all(trial.ended for trial in trials):
        return "FINISHED"
    return "FAILED" if any(trial.status is TrialStatus.FAILED for trial in trials) else "KILLED"


class MlflowMirror:
    """The one writer of a sweep's runs. Not for two threads at once, except `lag`."""

    name = "MLflow"

    def __init__(self, store: RunStore, folder: SweepFolder, sweep: SweepSpec, trials: Sequence[TrialSpec]) -> None:
        self._store, self._folder, self._sweep = store, folder, sweep
        self._sweep_id = folder.sweep_id()
        rule = sweep.early_stopping
        self._specs = tuple(trials)
        self._trials = [TrialMirror(trial, folder.trial(trial.trial_id), rule) for trial in trials]
        self._seed_groups: dict[str, SeedGroupMirror] = {}  # by `group_id`
        self._group_of: dict[str, str] = {}  # by trial id, once the trial has begun
        self._kind_of: dict[str, ResultIdentity] = {}  # by trial id, as counted in `_kinds`
        self._kinds: defaultdict[str, Counter[ResultIdentity]] = defaultdict(Counter)  # by data set
        self._labelled: dict[str, tuple[str, ...]] = {}  # by data set, the parts that its labels name
        self._by_setting: defaultdict[str, list[TrialMirror]] = defaultdict(list)
        self._groups_of_setting: dict[str, dict[str, None]] = {}
        for mirror in self._trials:
            self._by_setting[self._setting(mirror.trial)].append(mirror)
        alike: defaultdict[tuple[str, bool], list[TrialSpec]] = defaultdict(list)
        for trial in trials:
            alike[trial.dataset.name, sweep.is_selection(trial)].append(trial)
        self._details = {key: details_of(members) for key, members in alike.items()}
        self._runs: SweepRuns | None = None
        self._sweep_run: str | None = None
        self._unreadable: set[str] = set()
        self._continued: set[str] = set()  # the ids of shorter trials whose runs are marked
        self._outage = Outage(self.name)

    @classmethod
    def open(
        cls,
        uri: str | None,
        folder: SweepFolder,
        sweep: SweepSpec,
        trials: Sequence[TrialSpec],
        may_be_late: bool = False,
    ) -> MlflowMirror:
        """A mirror in the MLflow at `uri`; None is the SQLite file of the storage folder.

        With `may_be_late` a server that does not answer is a warning: it is tried again during the sweep.

        Raises:
            TrackingUnavailableError: nothing answers there within about ten seconds.
            TrackingError: it is no address for runs.
        """
        store: RunStore
        try:
            store = open_store(uri, folder)
        except TrackingUnavailableError as problem:
            if not may_be_late:
                raise
            _log.warning("%s. The sweep continues; MLflow gets its records when the server answers", problem)
            store = cast(RunStore, LateStore(uri, folder))
        return cls(store, folder, sweep, trials)

    @property
    def lag(self) -> Lag:
        """Reads the ledgers; cheap enough to show once a second."""
        return self._outage.lag(sum(trial.behind for trial in self._trials))

    def advance(self) -> bool:
        """Bring over what is new; True when all of it is in the store. Raises nothing when the store fails."""
        if self._outage.pausing:
            return False
        problem = self._read_all()
        self._outage.note(problem)
        return problem is None

    def hurry(self, within_s: float = CLOSING_S) -> None:
        """From now on MLflow has so many seconds for all that is left. A thread may be in `advance` meanwhile."""
        self._store.give_up_after(within_s)

    def close(self, report: Path | None = None) -> Lag:
        """Bring over the rest, end every run (FINISHED, FAILED or KILLED), attach the report; what MLflow lacks.

        May be called again, for example with a report that is made later.
        """
        self._outage.try_to_close(lambda: self.advance() and self._end(report))
        return self._outage.last_word(self.lag, self._folder.path)

    def register(self) -> list[BestPolicy]:
        """Put the sweep's best policies into the model registry, after `close`; those policies.

        Raises:
            TrackingError: MLflow does not take them.
        """
        finished = [
            FinishedTrial(trial.trial, trial.run_id, trial.final, trial.identity)
            for trial in self._trials
            if trial.run_id is not None
            and trial.final is not None
            and trial.identity is not None
            and not self._sweep.is_selection(trial.trial)
            and self._seed_groups[self._group_of[trial.trial.trial_id]].comparable
        ]
        chosen = best_policies(finished, self._sweep.name)
        try:
            for policy in chosen:
                self._store.register(policy, self._sweep_id)
        except StoreError as cause:
            kind = TrackingError if cause.refused else TrackingUnavailableError
            raise kind(f"MLflow's model registry does not take the best policies: {cause}") from cause
        return chosen

    def _read_all(self) -> str | None:
        """Follow every ledger once; the last problem met."""
        problem: str | None = None
        try:
            self._sweep_runs()
        except StoreError as cause:
            self._runs = None
            return str(cause)
        for trial in self._trials:
            try:
                self._follow(trial)
            except StoreError as cause:
                problem = str(cause)
                self._forget(trial)
                if not cause.refused:  # the others would fare no better
                    break
            except StorageError as cause:
                try:
                    self._fail_damaged(trial, cause)
                except StoreError as refused:
                    problem = str(refused)
                    self._forget(trial)
        return problem

    def _follow(self, trial: TrialMirror) -> None:
        trial_id = trial.trial.trial_id
        if trial_id in self._unreadable or (trial.done and trial.run_id is not None):
            return
        if trial.run_id is None and (found := self._sweep_runs().find(trial_id)) is not None:
            trial.adopt(self._store, found)
            self._join_group(trial, time.time())
        while records := trial.read():
            if trial.run_id is None:
                trial.created(self._ensure_run(trial, records[0].time_s))
            trial.log(self._store, records)
            self._join_group(trial, records[0].time_s)
            self._mark_continued(trial)
        if (group := self._group_of.get(trial_id)) is not None:
            self._seed_groups[group].update(self._store)

    def _mark_continued(self, trial: TrialMirror) -> None:
        """Take the runs of shorter trials that this one has gone on from, and their groups, out of all views."""
        for shorter in trial.extended_from:
            found = self._sweep_runs().find(shorter)
            if found is not None and shorter not in self._continued:
                self._store.log(found.run_id, tags=continued_tags(trial.trial.trial_id))
                key = found.tags.get(SEED_GROUP, "")
                if key not in self._seed_groups and (group := self._sweep_runs().find(key)) is not None:
                    self._store.log(group.run_id, tags={LEVEL: CONTINUED})
                self._continued.add(shorter)

    def _sweep_runs(self) -> SweepRuns:
        if self._runs is None:
            runs = SweepRuns(self._store, self._sweep_id)
            tags = sweep_tags(self._sweep, self._sweep_id, len(self._trials))
            begun_s = min((trial.begun_s or time.time() for trial in self._trials), default=time.time())
            run = runs.ensure(RunWanted(self._sweep.name, tags, {}, begun_s))
            self._store.log(run.run_id, tags=tags)  # another start may have another plan
            if run.status != "RUNNING":
                self._store.set_status(run.run_id, "RUNNING")
            self._runs, self._sweep_run = runs, run.run_id
        return self._runs

    def _ensure_run(self, trial: TrialMirror, start_s: float) -> str:
        """The id of the trial's run. It hangs below the sweep's until the trial's seed group is known."""
        runs, spec = self._sweep_runs(), trial.trial
        assert self._sweep_run is not None
        tags = trial_tags(spec, self._sweep, self._sweep_id, self._sweep_run)
        return runs.ensure(RunWanted(trial_name(spec), tags, trial_params(spec), start_s)).run_id

    def _join_group(self, trial: TrialMirror, start_s: float) -> None:
        """Put the trial below the run of its seed group, which its first attempt decides and another may change.

        A group is the seeds of one setting on one content of the data, with one simulator and one code.
        """
        identity, spec = trial.identity, trial.trial
        if identity is None:
            return
        key = group_key(spec, identity, self._sweep)
        if self._group_of.get(spec.trial_id) != key:
            self._leave_group(trial)
            self._enter_group(trial, key, identity)
        group = self._seed_groups[key]
        if group.run_id is None:
            assert self._sweep_run is not None
            tags = seed_group_tags(spec, identity, self._sweep, self._sweep_id, self._sweep_run)
            name = seed_group_name(spec, self._model_label(trial))
            run = self._sweep_runs().ensure(RunWanted(name, tags, seed_group_params(spec), start_s))
            if run.tags.get(LEVEL) != tags[LEVEL]:  # longer trials may have been removed
                self._store.log(run.run_id, tags={LEVEL: tags[LEVEL]})
            group.adopt(self._store, run)
        assert group.run_id is not None
        label = {MODEL: self._model_label(trial)}
        place = {LEVEL: "trial", PARENT: group.run_id, SEED_GROUP: key}  # LEVEL: a longer trial may have been removed
        trial.set_tags(self._store, {**place, **identity_tags(identity), **label})
        self._label_others(spec.dataset.name)

    def _enter_group(self, trial: TrialMirror, key: str, identity: ResultIdentity) -> None:
        spec = trial.trial
        self._seed_groups.setdefault(key, SeedGroupMirror(self._sweep.early_stopping is not None)).trials.append(trial)
        self._group_of[spec.trial_id] = key
        self._kinds[spec.dataset.name][identity] += 1
        self._kind_of[spec.trial_id] = identity
        self._groups_of_setting.setdefault(self._setting(spec), {})[key] = None
        self._share_out_waiting(self._setting(spec))

    def _leave_group(self, trial: TrialMirror) -> SeedGroupMirror | None:
        """Take the trial out of its group, if it is in one; that group."""
        spec = trial.trial
        key = self._group_of.pop(spec.trial_id, None)
        if key is None:
            return None
        group = self._seed_groups[key]
        group.trials = [each for each in group.trials if each is not trial]
        self._kinds[spec.dataset.name][self._kind_of.pop(spec.trial_id)] -= 1
        self._share_out_waiting(self._setting(spec))
        return group

    def _share_out_waiting(self, setting: str) -> None:
        """Trials that have not begun count as members of every group of their setting: they may become that."""
        members = self._by_setting[setting]
        waiting = [trial for trial in members if trial.trial.trial_id not in self._group_of]
        for key in self._groups_of_setting.get(setting, ()):
            self._seed_groups[key].waiting = waiting

    def _label_others(self, dataset: str) -> None:
        """Once trials of a data set are of another kind, name the kinds in the tag by which MLflow's views average."""
        apart = self._apart(dataset)
        if self._labelled.get(dataset, ()) != apart:
            for trial in self._trials:
                if trial.trial.dataset.name == dataset and trial.identity is not None:
                    trial.set_tags(self._store, {MODEL: self._model_label(trial)})
            self._labelled[dataset] = apart

    def _apart(self, dataset: str) -> tuple[str, ...]:
        return differing_parts([kind for kind, count in self._kinds[dataset].items() if count])

    def _model_label(self, trial: TrialMirror) -> str:
        spec = trial.trial
        selection = self._sweep.is_selection(spec)
        details = self._details[spec.dataset.name, selection][spec.seed_group_id]
        text = ", ".join(filter(None, [SELECTION if selection else "", details]))
        return model_label(spec, trial.identity, self._apart(spec.dataset.name), text)

    def _setting(self, trial: TrialSpec) -> str:
        """What the trials of its seed groups share."""
        return f"{trial.seed_group_id}-{SELECTION}" if self._sweep.is_selection(trial) else trial.seed_group_id

    def _forget(self, trial: TrialMirror) -> None:
        """A call for this trial failed, and may have taken effect: find its runs anew."""
        trial.forget()
        if (group := self._leave_group(trial)) is not None:
            group.forget()
        self._runs = None

    def _fail_damaged(self, trial: TrialMirror, cause: StorageError) -> None:
        """The trial's records cannot be read or trusted: its run has failed, and nothing more is taken from it."""
        if trial.run_id is None:
            trial.created(self._ensure_run(trial, trial.begun_s or time.time()))
        trial.fail(self._store, str(cause))
        self._unreadable.add(trial.trial.trial_id)
        _log.error("%s", cause)

    def _end(self, report: Path | None) -> bool:
        assert self._sweep_run is not None
        try:
            for trial in self._trials:
                trial.stop(self._store)
                trial.save_drawings(self._store)
            for seed_group in self._seed_groups.values():
                seed_group.stop(self._store)
            mirror_reevaluations(self._store, self._sweep_runs(), self._folder, self._sweep, self._specs)
            for path, place in ((self._folder.manifest, ""), (report, REPORT)):
                if path is not None and path.exists():
                    self._store.save(self._sweep_run, path, place)
            if report is not None and (summary := report / SUMMARY).exists():
                tags = sweep_tags(self._sweep, self._sweep_id, len(self._trials))
                note = note_with_tables(tags, summary.read_text(encoding="utf-8"))
                self._store.log(self._sweep_run, tags=note)
            self._store.set_status(self._sweep_run, end_status(self._trials), end_ms(self._trials))
        except StoreError as cause:
            self._outage.note(str(cause))
            return False
        return True
