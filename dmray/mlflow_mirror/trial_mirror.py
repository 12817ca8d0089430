"""One trial's run in MLflow as a projection of its ledger.

The projection can start over at any time (`forget`): the run is found again, records that are there already are
recognised by their sentinels, and the rest is added. So a crash of the driver, a lost answer and an outage have one
cure, which is the ordinary way of working.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from dmray.errors import StorageError
from dmray.mlflow_mirror.dataset_input import dataset_used
from dmray.mlflow_mirror.labels import STATUS, attempt_tags, done_tags, failure_tags, stopped_tags, trial_params
from dmray.mlflow_mirror.logged_policy import LoggedPolicy
from dmray.mlflow_mirror.metric_points import SENTINELS, Measured, Point, points_of
from dmray.mlflow_mirror.store import POINTS_PER_BATCH, RunStore, StoredRun
from dmray.records.folders import TrialFolder
from dmray.records.ledger import LedgerTail, end_of_whole_lines, whole_lines_after
from dmray.records.records import (
    AttemptFailed,
    AttemptPaused,
    AttemptStarted,
    EvaluationDone,
    EvaluationSkipped,
    LedgerRecord,
    TrialDone,
    TrialStopped,
)
from dmray.records.scores import Score, best_score, last_score
from dmray.specs import TrialSpec, content_hash

_DRAWN = "dmray.drawn"  # which pictures and videos the run has
RECORDS_PER_READ = 500  # bounds the memory that an outage or a long ledger can take


@dataclass
class _Committed:
    """Which records are in the store: by kind, their steps."""

    steps: dict[str, set[int]]

    @classmethod
    def of(cls, store: RunStore, run: StoredRun) -> _Committed:
        present = {kind: key for kind, key in SENTINELS.items() if key in run.metrics}
        return cls({kind: store.steps(run.run_id, key) for kind, key in present.items()})

    def take(self, record: Measured) -> bool:
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
    attempt: AttemptStarted | None = None
    failure: AttemptFailed | None = None


@dataclass(frozen=True)
class _Evaluated:
    """A whole evaluation, as a score and as points."""

    score: Score
    points: tuple[Point, ...]


class TrialMirror:
    """Follows one ledger. `state`: new, running, left, failed, stopped, finished or diverged, as far as it is read."""

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
        self._attempt: AttemptStarted | None = None
        self._last: _Evaluated | None = None
        self._best: _Evaluated | None = None
        self._drawn: str | None = None
        self.run_id: str | None = None
        self.state = "new"
        self.ended_s = 0.0
        self.final: float | None = None
        self.best: float | None = None

    @property
    def done(self) -> bool:
        return self.state in ("finished", "diverged")

    @property
    def ended(self) -> bool:
        """Whether it is done, or was stopped early (and may go on another day)."""
        return self.done or self.state == "stopped"

    @property
    def begun_s(self) -> float | None:
        """The time of its first record; None without a readable one."""
        with contextlib.suppress(StorageError):
            return next((record.time_s for record in LedgerTail(self.folder.ledger).read(1)), None)
        return None

    @property
    def behind(self) -> int:
        """Records of the ledger that are not known to be in the store."""
        return 0 if self.done and self.run_id else whole_lines_after(self.folder.ledger, self._safe_offset)

    def read(self) -> list[LedgerRecord]:
        """The next records to log; none once the trial has ended."""
        return [] if self.done else self._tail.read(RECORDS_PER_READ)

    def adopt(self, store: RunStore, run: StoredRun) -> None:
        """Take over the run that an earlier driver, or this one before an outage, left in the store."""
        self.run_id, self._status, self._drawn = run.run_id, run.status, run.tags.get(_DRAWN)
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
            if batch.attempt is not None:
                self._describe(store, batch.attempt)
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
            self.state, self._attempt, batch.attempt = "running", record, record
            batch.tags.update(attempt_tags(record))
            return []
        if isinstance(record, AttemptFailed):
            self.state, self.ended_s, batch.failure = "failed", record.time_s, record
            batch.tags.update(failure_tags(record))
            return []
        if isinstance(record, AttemptPaused):
            self.state = "left"
            return []
        if isinstance(record, TrialStopped):
            self.state, self.ended_s = "stopped", record.time_s
            batch.tags.update(stopped_tags(record))
            return []
        if isinstance(record, EvaluationSkipped):
            return []
        if isinstance(record, EvaluationDone) and record.step not in self._scores:
            self._note(record)
        if isinstance(record, TrialDone):
            self._end(record)
            batch.tags.update(done_tags(record))
        return points_of(record, list(self._scores.values())) if self._committed.take(record) else []

    def _note(self, record: EvaluationDone) -> None:
        """Keep the score, and the points of the evaluations that the trial's two models stand for."""
        score = self._scores[record.step] = Score.of(record)
        if score.quick:
            return
        evaluated = _Evaluated(score, tuple(points_of(record, [])))
        if self._last is None or score.step > self._last.score.step:
            self._last = evaluated
        if best_score([score, *([self._best.score] if self._best else [])]) is score:
            self._best = evaluated

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
        elif self.state in ("left", "stopped"):  # a run that is FINISHED has a final score
            self._set_status(store, "KILLED")
        elif self.state == "running":
            begun_before = self._tail.offset <= self._history_end  # by a driver that is gone: no worker is on it now
            self._set_status(store, "KILLED" if begun_before else "RUNNING")

    def _describe(self, store: RunStore, attempt: AttemptStarted) -> None:
        """What the trial is and what it trains on, for those that look at it while it runs."""
        assert self.run_id is not None
        spec = self.trial.model_dump(mode="json")
        store.save(self.run_id, yaml.safe_dump(spec, sort_keys=False), "config.yaml")
        dataset = dataset_used(self.trial, attempt)
        if dataset is not None:
            store.log_dataset(self.run_id, dataset)

    def _save_files(self, store: RunStore) -> None:
        """Before the run counts as finished, so that what a crash left out is saved the next time."""
        assert self.run_id is not None
        if self._status == "FINISHED":
            return
        for policy in self._policies():
            store.save_policy(self.run_id, policy)
        for table in sorted(self.folder.evaluations.glob("step_*.parquet"))[-1:]:  # the final one; the folder has all
            store.save(self.run_id, table, "evaluations")

    def _policies(self) -> Iterator[LoggedPolicy]:
        """The final and the best weights; weights that diverged are nobody's model."""
        facts = self._attempt.provenance.get("policy") if self._attempt else None
        files = {"final": self.folder.final_checkpoint, "best": self.folder.best_checkpoint}
        chosen = {"final": self._last if self.state == "finished" else None, "best": self._best}
        for name, evaluated in chosen.items():
            if evaluated is not None and files[name].exists():
                step, points = evaluated.score.step, evaluated.points
                yield LoggedPolicy(name, step, files[name], trial_params(self.trial), points, facts)

    def save_drawings(self, store: RunStore) -> None:
        """Upload pictures and videos that were made of the trial, unless the run has these very ones."""
        folders = {"pictures": self.folder.pictures.glob("*.png"), "videos": self.folder.videos.glob("*.mp4")}
        files: dict[Path, str] = {path: place for place, found in folders.items() for path in sorted(found)}
        drawn = content_hash([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])[:16]
        if self.run_id is None or not files or drawn == self._drawn:
            return
        for path, place in files.items():
            store.save(self.run_id, path, place)
        store.log(self.run_id, tags={_DRAWN: drawn})
        self._drawn = drawn

    def _set_status(self, store: RunStore, status: str) -> None:
        if status != self._status and self.run_id is not None:
            ended = int(self.ended_s * 1000) if self.ended or status == "FAILED" else None
            store.set_status(self.run_id, status, ended)
            self._status = status
