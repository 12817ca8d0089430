"""One trial's run in MLflow, made from the trial's ledger.

Making it can start over at any time (`forget`): the run is found again, records that are there already are recognised
by their points (`COMMITTED`), and the rest is added. So a crash of the driver, a lost answer and an outage are all
handled by the ordinary way of working.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from dmray.errors import StorageError
from dmray.escaping import plain
from dmray.mlflow_mirror.layout import (
    BEST_MODEL,
    BEST_SCORE,
    COMMITTED,
    CONFIG,
    DRAWINGS,
    ERROR,
    EVALUATIONS,
    FINAL_MODEL,
    FINAL_SCORE,
    PICTURES,
    RUN_STATUS,
    STATUS,
    VIDEOS,
    MeasuredRecord,
    Point,
    attempt_tags,
    damage_tags,
    dataset_used,
    failure_tags,
    identity_in,
    points_of,
    started_over_tags,
    stopped_tags,
    trial_params,
)
from dmray.mlflow_mirror.models import LoggedPolicy
from dmray.mlflow_mirror.store import POINTS_PER_BATCH, RunStore, StoredRun
from dmray.progress.trial_status import DONE, ENDED, TrialHistory, TrialStatus, read_history, with_liveness
from dmray.records import (
    AttemptFailed,
    AttemptStarted,
    EvaluationDone,
    LedgerTail,
    LightRecord,
    ResultIdentity,
    TrialFolder,
    changed_since_done,
)
from dmray.records.ledger import end_of_whole_lines, whole_lines_after
from dmray.records.scores import Score, best_score, last_score
from dmray.specs import EarlyStoppingSpec, TrialSpec, content_hash

RECORDS_PER_READ = 500  # bounds the memory that an outage or a long ledger can take


@dataclass
class _Committed:
    """The records that are in the store: by kind, their steps."""

    steps: dict[str, set[int]]

    @classmethod
    def of(cls, store: RunStore, run: StoredRun) -> _Committed:
        present = {kind: key for kind, key in COMMITTED.items() if key in run.metrics}
        return cls({kind: store.steps(run.run_id, key) for kind, key in present.items()})

    def take(self, record: MeasuredRecord) -> bool:
        """Note the record; False if it, or another of its kind and step, is there already."""
        steps = self.steps.setdefault(record.kind, set())
        if record.step in steps or (record.kind == "done" and steps):
            return False
        steps.add(record.step)
        return True


@dataclass
class _Batch:
    """Points and tags that go to the store in one call, and what is saved after it."""

    points: list[Point] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    attempt: AttemptStarted | None = None
    failure: AttemptFailed | None = None


@dataclass(frozen=True)
class _Evaluated:
    """An evaluation over all episodes, as a score and as points."""

    score: Score
    points: tuple[Point, ...]


class TrialMirror:
    """Follows one ledger. `rule` is the sweep's early stopping."""

    def __init__(self, trial: TrialSpec, folder: TrialFolder, rule: EarlyStoppingSpec | None = None) -> None:
        self.trial, self.folder, self._rule = trial, folder, rule
        self._end_at_start = end_of_whole_lines(folder.ledger) if folder.ledger.exists() else 0
        self._safe_offset = 0
        self.forget()

    def forget(self) -> None:
        """Start over: nothing that is believed about the store is kept."""
        self._tail = LedgerTail(self.folder.ledger, light=True)
        self._history = TrialHistory(self.trial, self._rule)
        self._adopted: TrialStatus | None = None
        self._committed: _Committed | None = None
        self._run_status: str | None = None
        self._status_tag: str | None = None
        self._last: _Evaluated | None = None
        self._best: _Evaluated | None = None
        self._drawings: str | None = None
        self.run_id: str | None = None
        self.ended_s = 0.0
        self.final: float | None = None
        self.best: float | None = None
        self._adopted_identity: ResultIdentity | None = None
        self._tags: dict[str, str] = {}

    @property
    def identity(self) -> ResultIdentity | None:
        """What its scores depend on beside the spec, as far as the ledger is read; None before the first attempt."""
        return self._history.identity or self._adopted_identity

    @property
    def status(self) -> TrialStatus:
        """As far as the ledger is read; of a run that was complete before, as its tag says."""
        return self._adopted or self._history.status

    @property
    def done(self) -> bool:
        """Whether it has ended as a result."""
        return self.status in DONE

    @property
    def ended(self) -> bool:
        """Whether it is done, or was stopped early (and may continue under another rule)."""
        return self.status in ENDED

    @property
    def begun_s(self) -> float | None:
        """The time of its first record; None without a readable one."""
        with contextlib.suppress(StorageError):
            return next((record.time_s for record in LedgerTail(self.folder.ledger, light=True).read(1)), None)
        return None

    @property
    def behind(self) -> int:
        """Records of the ledger that are not known to be in the store."""
        return 0 if self.done and self.run_id else whole_lines_after(self.folder.ledger, self._safe_offset)

    def read(self) -> list[LightRecord]:
        """The next records to log; none once the trial has ended as a result."""
        return [] if self.done else self._tail.read(RECORDS_PER_READ)

    def adopt(self, store: RunStore, run: StoredRun) -> None:
        """Take over the run that an earlier driver, or this one before an outage, left in the store."""
        self.run_id, self._run_status = run.run_id, run.status
        self._status_tag, self._drawings = run.tags.get(STATUS), run.tags.get(DRAWINGS)
        complete = run.status == "FINISHED" and COMMITTED["done"] in run.metrics  # the end is logged last
        if complete and self._status_tag in DONE and (damage := changed_since_done(self.folder)) is not None:
            raise StorageError(damage)
        if complete and self._status_tag in DONE:
            self._adopted = TrialStatus(self._status_tag)
            self._adopted_identity = identity_in(run.tags) or self._identity_by_ledger()
            self.final, self.best = run.metrics.get(FINAL_SCORE), run.metrics.get(BEST_SCORE)
            self.ended_s = run.ended_s
        else:
            self._committed = _Committed.of(store, run)
        self._tags = dict(run.tags)

    def _identity_by_ledger(self) -> ResultIdentity | None:
        """For a run of an earlier dmray: the whole ledger is read."""
        with contextlib.suppress(StorageError):
            return read_history(self.folder, self.trial, self._rule).identity
        return None

    def curve(self) -> dict[int, float]:
        """Its normalized scores by step, read from the ledger; empty if the ledger cannot be read."""
        with contextlib.suppress(StorageError):
            history = read_history(self.folder, self.trial, self._rule)
            if history.damage is None:
                return {step: score.normalized for step, score in history.scores.items()}
        return {}

    def set_tags(self, store: RunStore, tags: Mapping[str, str]) -> None:
        """Set the tags of its run that are not known to have these values."""
        changed = {name: value for name, value in tags.items() if self._tags.get(name) != value}
        if changed and self.run_id is not None:
            store.log(self.run_id, tags=changed)
            self._tags |= changed

    def created(self, run_id: str) -> None:
        """The run is new and empty."""
        self.run_id, self._run_status, self._committed = run_id, "RUNNING", _Committed({})

    def log(self, store: RunStore, records: Sequence[LightRecord]) -> None:
        """Bring `records`, as `read` gave them, into the store."""
        assert self.run_id is not None
        for batch in self._batches(records):
            store.log(self.run_id, batch.points, tags=batch.tags)
            if batch.attempt is not None:
                self._describe(store, batch.attempt)
            if batch.failure is not None:
                store.save(self.run_id, plain(batch.failure.traceback), ERROR)
        self._settle(store)
        self._safe_offset = max(self._safe_offset, self._tail.offset)

    def fail(self, store: RunStore, damage: str) -> None:
        """The ledger is damaged, so the trial has failed, whatever was logged before."""
        self._history.damage, self._adopted = damage, None
        self.final = self.best = None
        self.ended_s = self.ended_s or time.time()
        if self.run_id is not None:
            self.set_tags(store, damage_tags(damage))
            self._show_status(store, alive=False)

    def stop(self, store: RunStore) -> None:
        """The sweep ends here: nobody works on the trial any more."""
        if self.run_id is not None:
            self._show_status(store, alive=False)

    def _batches(self, records: Sequence[LightRecord]) -> Iterator[_Batch]:
        batch = _Batch()
        for record in records:
            points = self._take(record, batch)
            if len(batch.points) + len(points) > POINTS_PER_BATCH:  # a record is never cut in two
                yield batch
                batch = _Batch()
            batch.points.extend(points)
        yield batch

    def _take(self, record: LightRecord, batch: _Batch) -> list[Point]:
        assert self._committed is not None
        history = self._history
        if record.kind == "evaluation" and record.step not in history.scores:
            self._note(record)
        history.take(record)
        if history.damage is not None:
            raise StorageError(history.damage)
        if record.kind == "started_over":
            self._last = self._best = None
            batch.tags.update(started_over_tags(record))
        elif record.kind == "attempt":
            batch.attempt = record
            batch.tags.update(attempt_tags(record))
        elif record.kind == "failure":
            self.ended_s, batch.failure = record.time_s, record
            batch.tags.update(failure_tags(record))
        elif record.kind == "stopped":
            self.ended_s = record.time_s
            batch.tags.update(stopped_tags(record))
        elif record.kind == "train" or record.kind == "evaluation" or record.kind == "rung":
            return points_of(record, ()) if self._committed.take(record) else []
        elif record.kind == "done":
            last, best = last_score(history.scores.values()), best_score(history.scores.values())
            self.ended_s = record.time_s
            self.final = last.normalized if last and history.status is TrialStatus.FINISHED else None
            self.best = best.normalized if best else None
            return points_of(record, history.scores.values()) if self._committed.take(record) else []
        return []

    def _note(self, record: EvaluationDone) -> None:
        """Keep the points of the evaluations that the trial's two models stand for."""
        score = Score.of(record)
        if score.quick:
            return
        evaluated = _Evaluated(score, tuple(points_of(record, ())))
        if self._last is None or score.step > self._last.score.step:
            self._last = evaluated
        if best_score([score, *([self._best.score] if self._best else [])]) is score:
            self._best = evaluated

    def _settle(self, store: RunStore) -> None:
        if self.done:
            if (damage := changed_since_done(self.folder)) is not None:
                raise StorageError(damage)
            self._save_files(store)
            self._committed = None
            self._history.scores.clear()
        self._show_status(store, alive=self._tail.offset > self._end_at_start)  # else of a driver that is gone

    def _show_status(self, store: RunStore, alive: bool) -> None:
        """Set the tag, then MLflow's own status, where they differ: a run that is FINISHED is complete."""
        assert self.run_id is not None
        status = with_liveness(self.status, alive)
        if status != self._status_tag:
            store.log(self.run_id, tags={STATUS: status})
            self._status_tag = status
        if RUN_STATUS[status] != self._run_status:
            ended = self.ended or self.status is TrialStatus.FAILED
            store.set_status(self.run_id, RUN_STATUS[status], int(self.ended_s * 1000) if ended else None)
            self._run_status = RUN_STATUS[status]

    def _describe(self, store: RunStore, attempt: AttemptStarted) -> None:
        """Save the spec and log the data set, so that they are there while the trial runs."""
        assert self.run_id is not None
        spec = self.trial.model_dump(mode="json")
        store.save(self.run_id, yaml.safe_dump(spec, sort_keys=False), CONFIG)
        dataset = dataset_used(self.trial, attempt)
        if dataset is not None:
            store.log_dataset(self.run_id, dataset)

    def _save_files(self, store: RunStore) -> None:
        """Save models and tables before the run counts as FINISHED, so that a crash in between is made good later."""
        assert self.run_id is not None
        if self._run_status == "FINISHED":
            return
        for policy in self._policies():
            store.save_policy(self.run_id, policy)
        for table in sorted(self.folder.evaluations.glob("step_*.parquet"))[-1:]:  # the final one; the folder has all
            store.save(self.run_id, table, EVALUATIONS)

    def _policies(self) -> Iterator[LoggedPolicy]:
        """The final and the best weights; of a trial that diverged, the best ones alone."""
        facts = self._history.provenance.get("policy")
        finished = self.status is TrialStatus.FINISHED
        for name, evaluated, checkpoint in (
            (FINAL_MODEL, self._last if finished else None, self.folder.final_checkpoint),
            (BEST_MODEL, self._best, self.folder.best_checkpoint),
        ):
            if evaluated is not None and checkpoint.exists():
                params = trial_params(self.trial)
                yield LoggedPolicy(name, evaluated.score.step, checkpoint, params, evaluated.points, facts)

    def save_drawings(self, store: RunStore) -> None:
        """Upload pictures and videos that were made of the trial, unless the run has exactly these."""
        folders = {PICTURES: self.folder.pictures.glob("*.png"), VIDEOS: self.folder.videos.glob("*.mp4")}
        files: dict[Path, str] = {path: place for place, found in folders.items() for path in sorted(found)}
        content = content_hash([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])[:16]
        if self.run_id is None or not files or content == self._drawings:
            return
        for path, place in files.items():
            store.save(self.run_id, path, place)
        store.log(self.run_id, tags={DRAWINGS: content})
        self._drawings = content
