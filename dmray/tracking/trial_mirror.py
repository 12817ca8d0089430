"""One trial's run in MLflow as a projection of its ledger.

The projection can start over at any time (`forget`): the run is found again, records that are there already are
recognised by their sentinels, and the rest is added. So a crash of the driver, a lost answer and an outage have one
cure, which is the ordinary way of working.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dmray.specs import TrialSpec
from dmray.tracking.folders import TrialFolder
from dmray.tracking.ledger import LedgerTail, end_of_whole_lines, whole_lines_after
from dmray.tracking.metric_points import SENTINELS, Point, points_of
from dmray.tracking.mlflow_store import POINTS_PER_BATCH, RunStore, StoredRun
from dmray.tracking.records import (
    AttemptFailed,
    AttemptLeft,
    AttemptStarted,
    EvaluationDone,
    EvaluationSkipped,
    LedgerRecord,
    TrainProgress,
    TrialDone,
)
from dmray.tracking.run_labels import STATUS, attempt_tags, done_tags, failure_tags
from dmray.tracking.scores import Score, best_score, last_score

RECORDS_PER_READ = 500  # bounds the memory that an outage or a long ledger can take


@dataclass
class _Committed:
    """Which records are in the store: by kind, their steps."""

    steps: dict[str, set[int]]

    @classmethod
    def of(cls, store: RunStore, run: StoredRun) -> _Committed:
        present = {kind: key for kind, key in SENTINELS.items() if key in run.metrics}
        return cls({kind: store.steps(run.run_id, key) for kind, key in present.items()})

    def take(self, record: TrainProgress | EvaluationDone | TrialDone) -> bool:
        """Note the record; False when it, or another of its kind and step, was there before."""
        steps = self.steps.setdefault(record.kind, set())
        if record.step in steps or (record.kind == "done" and steps):
            return False
        steps.add(record.step)
        return True


@dataclass
class _Batch:
    """What goes to the store in one call."""

    points: list[Point] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    failure: AttemptFailed | None = None


class TrialMirror:
    """Follows one ledger. `state`: new, running, left, failed, finished or diverged, as far as it has been read."""

    def __init__(self, trial: TrialSpec, folder: TrialFolder) -> None:
        self.trial, self.folder = trial, folder
        self._history_end = end_of_whole_lines(folder.ledger) if folder.ledger.exists() else 0
        self._safe_offset = 0
        self.forget()

    def forget(self) -> None:
        """Start the projection over: nothing that is believed about the store is kept."""
        self._tail = LedgerTail(self.folder.ledger)
        self._committed: _Committed | None = None
        self._status: str | None = None
        self._scores: dict[int, Score] = {}
        self.run_id: str | None = None
        self.state = "new"
        self.ended_s = 0.0
        self.final: float | None = None
        self.best: float | None = None

    @property
    def done(self) -> bool:
        return self.state in ("finished", "diverged")

    @property
    def behind(self) -> int:
        """Records of the ledger that are not known to be in the store."""
        return 0 if self.done and self.run_id else whole_lines_after(self.folder.ledger, self._safe_offset)

    def read(self) -> list[LedgerRecord]:
        """The next records to log; none once the trial has ended."""
        return [] if self.done else self._tail.read(RECORDS_PER_READ)

    def adopt(self, store: RunStore, run: StoredRun) -> None:
        """Take over the run that an earlier driver, or this one before an outage, left in the store."""
        self.run_id, self._status = run.run_id, run.status
        if run.status == "FINISHED" and SENTINELS["done"] in run.metrics:  # the end is logged last: all is there
            self.state = run.tags.get(STATUS, "finished")
            self.final = run.metrics.get("final/normalized_score")
            self.best = run.metrics.get("best/normalized_score")
            self.ended_s = run.ended_s
        else:
            self._committed = _Committed.of(store, run)

    def created(self, run_id: str) -> None:
        """The run is new and empty."""
        self.run_id, self._status, self._committed = run_id, "RUNNING", _Committed({})

    def log(self, store: RunStore, records: Sequence[LedgerRecord]) -> None:
        """Bring `records`, as `read` gave them, into the store."""
        assert self.run_id is not None
        for batch in self._batches(records):
            store.log(self.run_id, batch.points, tags=batch.tags)
            if batch.failure is not None:
                store.save(self.run_id, batch.failure.traceback, "error.txt")
        self._settle(store)
        self._safe_offset = max(self._safe_offset, self._tail.offset)

    def stop(self, store: RunStore) -> None:
        """The sweep ends here: a trial that has not ended was stopped."""
        if self.run_id is not None and self.state == "running":
            self._set_status(store, "KILLED")

    def _batches(self, records: Sequence[LedgerRecord]) -> Iterator[_Batch]:
        batch = _Batch()
        for record in records:
            points = self._take(record, batch)
            if len(batch.points) + len(points) > POINTS_PER_BATCH:  # a record is never cut in two
                yield batch
                batch = _Batch()
            batch.points.extend(points)
        yield batch

    def _take(self, record: LedgerRecord, batch: _Batch) -> list[Point]:
        assert self._committed is not None
        if isinstance(record, AttemptStarted):
            self.state = "running"
            batch.tags.update(attempt_tags(record))
            return []
        if isinstance(record, AttemptFailed):
            self.state, self.ended_s, batch.failure = "failed", record.time_s, record
            batch.tags.update(failure_tags(record))
            return []
        if isinstance(record, AttemptLeft):
            self.state = "left"
            return []
        if isinstance(record, EvaluationSkipped):
            return []
        if isinstance(record, EvaluationDone):
            self._scores.setdefault(record.step, Score.of(record))
        if isinstance(record, TrialDone):
            self._end(record)
            batch.tags.update(done_tags(record))
        return points_of(record, list(self._scores.values())) if self._committed.take(record) else []

    def _end(self, record: TrialDone) -> None:
        last, best = last_score(self._scores.values()), best_score(self._scores.values())
        self.state, self.ended_s = record.status, record.time_s
        self.final = last.normalized if last and record.status == "finished" else None
        self.best = best.normalized if best else None

    def _settle(self, store: RunStore) -> None:
        if self.done:
            self._save_files(store)
            self._set_status(store, "FINISHED")
            self._committed, self._scores = None, {}
        elif self.state == "failed":
            self._set_status(store, "FAILED")
        elif self.state == "left":
            self._set_status(store, "KILLED")
        elif self.state == "running":
            begun_before = self._tail.offset <= self._history_end  # by a driver that is gone: no worker is on it now
            self._set_status(store, "KILLED" if begun_before else "RUNNING")

    def _save_files(self, store: RunStore) -> None:
        """Before the run counts as finished, so that what a crash left out is saved the next time."""
        assert self.run_id is not None
        if self._status == "FINISHED":
            return
        for checkpoint in (self.folder.final_checkpoint, self.folder.best_checkpoint):
            if checkpoint.exists():
                store.save(self.run_id, checkpoint, "checkpoints")
        for table in sorted(self.folder.evaluations.glob("step_*.parquet"))[-1:]:  # the final one; the folder has all
            store.save(self.run_id, table, "evaluations")

    def _set_status(self, store: RunStore, status: str) -> None:
        if status != self._status and self.run_id is not None:
            ended = int(self.ended_s * 1000) if status in ("FINISHED", "FAILED") else None
            store.set_status(self.run_id, status, ended)
            self._status = status
