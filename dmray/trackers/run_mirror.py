"""A tracker as a copy of a sweep's ledgers, for trackers that keep one run a trial and nothing above it.

`RunMirror` reads the ledgers and gives a tracker (`Runs`) the rows that it does not have. How far a run has come is
its `Seen`: after a crash or an outage the ledger is read again, and rows from before that place are left out. So each
record is in a run once, whatever happened in between. The first record of a kind and step counts, as everywhere.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

from dmray.errors import StorageError
from dmray.mlflow_mirror.client import StoreError, first_line
from dmray.mlflow_mirror.layout import (
    COMMITTED,
    attempt_tags,
    damage_tags,
    extended_tags,
    failure_tags,
    points_of,
    started_over_tags,
    stopped_tags,
)
from dmray.mlflow_mirror.outage import CLOSING_S, Lag, Outage
from dmray.progress.trial_status import DONE, ENDED, RUNNING, TrialHistory, TrialStatus, with_liveness
from dmray.records import LedgerTail, LightRecord, SweepFolder, TrialFolder, changed_since_done
from dmray.records.ledger import end_of_whole_lines, whole_lines_after
from dmray.redaction import without_secrets
from dmray.specs import SweepSpec, TrialSpec

_log = logging.getLogger(__name__)
_RECORDS_PER_READ = 500  # bounds the memory that a long ledger can take


class Row(NamedTuple):
    """What a tracker shows of one record: the `record`-th of its ledger, from 0.

    `values`: metrics by name, at the optimizer step `step`. `facts`: texts by name, such as the machine of an attempt
    or the error of a failure; later ones replace earlier ones of the same name.
    """

    record: int
    step: int
    time_s: float
    values: Mapping[str, float]
    facts: Mapping[str, str]


class Seen(NamedTuple):
    """How far a run has come: it has the rows of the ledger's first `records` records, which are `num_bytes` bytes.

    `status`: the status that it shows.
    """

    records: int = 0
    num_bytes: int = 0
    status: str = ""


class Run(Protocol):
    """The run of one trial, open for writing.

    A call takes effect or raises `StoreError` or `OSError`; then the run is opened again and told its rows again.
    """

    records: int  # of the ledger's records, so many are there already

    def write(self, rows: Sequence[Row], seen: Seen) -> None:
        """Add rows, in the order of the ledger. Then the run has come as far as `seen` says."""

    def end(self, seen: Seen) -> None:
        """Nobody works on the trial now. It may go on later, unless `seen.status` is that of a result."""


class Runs(Protocol):
    """Where a tracker keeps the runs of a sweep; `name` is the tracker's."""

    name: str

    def seen(self, trial: TrialSpec) -> Seen:
        """How far the trial's run had come when it was last ended; `Seen()` if it was not, or is not there."""

    def open(self, trial: TrialSpec) -> Run:
        """The trial's run, found again or made. Raises as the methods of `Run`."""

    def give_up_after(self, seconds: float) -> None:
        """All calls that are not done in so many seconds from now fail."""


class _Follower:
    """Reads one ledger, and makes rows of its records."""

    def __init__(self, trial: TrialSpec, folder: TrialFolder, sweep: SweepSpec) -> None:
        self.trial, self._folder, self._rule = trial, folder, sweep.early_stopping
        self._bytes_at_start = 0
        with contextlib.suppress(StorageError):  # `batches` says so
            self._bytes_at_start = self.num_bytes
        self.seen_bytes = 0  # of the ledger; the run has what they say
        self.ended: Seen | None = None  # how far the run had come when it was ended; None: not known yet
        self.damaged = False
        self.restart()

    def restart(self) -> None:
        """Read the ledger from its beginning again, for a run that is opened again."""
        self.run: Run | None = None
        self._tail = LedgerTail(self._folder.ledger, light=True)
        self._history = TrialHistory(self.trial, self._rule)
        self._taken: dict[str, set[int]] = {}
        self._records = 0

    @property
    def num_bytes(self) -> int:
        """The size of the ledger without a torn last line."""
        return end_of_whole_lines(self._folder.ledger) if self._folder.ledger.exists() else 0

    @property
    def behind(self) -> int:
        return 0 if self.damaged else whole_lines_after(self._folder.ledger, self.seen_bytes)

    def seen(self, alive: bool | None = None) -> Seen:
        """As far as the ledger is read. `alive`: somebody works on the trial; None: if the ledger has grown."""
        grown = self._tail.offset > self._bytes_at_start  # else it is the ledger of a driver that is gone
        status = with_liveness(self._history.status, grown if alive is None else alive)
        return Seen(self._records, self.num_bytes if self.damaged else self._tail.offset, status)

    @property
    def resting(self) -> bool:
        """Whether nobody is known to work on the trial: it has ended or failed, or the ledger has not grown."""
        status = self._history.status
        return status in ENDED or status is TrialStatus.FAILED or self._tail.offset <= self._bytes_at_start

    def batches(self) -> Iterator[list[Row]]:
        """The rows of the records that are new, some hundreds at a time.

        Raises:
            StorageError: the ledger is damaged, or is that of another trial.
        """
        while self._history.status not in DONE and (records := self._tail.read(_RECORDS_PER_READ)):
            rows = list(chain.from_iterable(map(self._rows, records)))
            if self._history.status in DONE and (damage := changed_since_done(self._folder)) is not None:
                raise StorageError(damage)
            yield rows

    def damage_row(self, damage: str) -> Row:
        """The trial has failed, because its records cannot be read."""
        self._history.damage, self.damaged = damage, True
        last = self._history.last
        return Row(self._records, self._history.step, last.time_s if last else 0.0, {}, damage_tags(damage))

    def _rows(self, record: LightRecord) -> Iterator[Row]:
        self._history.take(record)
        if self._history.damage is not None:
            raise StorageError(self._history.damage)
        number, self._records = self._records, self._records + 1
        values, facts = self._values(record), _facts(record)
        if values or facts:
            step = getattr(record, "step", self._history.step)
            texts = {name: without_secrets(text) for name, text in facts.items()}
            yield Row(number, step, record.time_s, values, texts)

    def _values(self, record: LightRecord) -> dict[str, float]:
        """The metrics of a record; none if another record of its kind and step came before."""
        if not (
            record.kind == "train" or record.kind == "evaluation" or record.kind == "rung" or record.kind == "done"
        ):
            return {}
        taken = self._taken.setdefault(record.kind, set())
        if record.step in taken or (record.kind == "done" and taken):
            return {}
        taken.add(record.step)
        points = points_of(record, self._history.scores.values())
        return {point.key: point.value for point in points if point.key != COMMITTED[record.kind]}


def _facts(record: LightRecord) -> dict[str, str]:
    if record.kind == "attempt":  # what begins with mlflow. is read by MLflow's UI alone
        return {name: text for name, text in attempt_tags(record).items() if not name.startswith("mlflow.")}
    if record.kind == "failure":
        return failure_tags(record)
    if record.kind == "stopped":
        return stopped_tags(record)
    if record.kind == "extended":
        return extended_tags(record)
    return started_over_tags(record) if record.kind == "started_over" else {}


class RunMirror:
    """A `Tracker` that fills `runs` from the ledgers of a sweep. Not for two threads at once."""

    def __init__(self, runs: Runs, folder: SweepFolder, sweep: SweepSpec, trials: Sequence[TrialSpec]) -> None:
        self.name = runs.name
        self._runs, self._folder = runs, folder
        self._followers = [_Follower(trial, folder.trial(trial.trial_id), sweep) for trial in trials]
        self._outage = Outage(runs.name)

    @property
    def lag(self) -> Lag:
        return self._outage.lag(sum(each.behind for each in self._followers))

    def advance(self) -> bool:
        """Bring over what is new; True when all of it is there. A tracker that fails is a warning, once."""
        if self._outage.pausing:
            return False
        problem = self._update_all(closing=False)
        self._outage.note(problem)
        return problem is None

    def hurry(self, within_s: float = CLOSING_S) -> None:
        """From now on the tracker has so many seconds for all that is left."""
        self._runs.give_up_after(within_s)

    def close(self, report: Path | None = None) -> Lag:
        """Bring over the rest and end every run; what is missing. `report` is not copied: it is in the sweep's folder.

        May be called again.
        """
        self._outage.try_to_close(self._close)
        return self._outage.last_word(self.lag, self._folder.path)

    def _close(self) -> bool:
        problem = self._update_all(closing=True)
        self._outage.note(problem)
        return problem is None

    def _update_all(self, closing: bool) -> str | None:
        """Follow every ledger; the last problem met."""
        problem: str | None = None
        for each in self._followers:
            try:
                self._update(each, closing)
            except (StoreError, OSError) as cause:
                problem = first_line(cause)
                each.restart()
                each.ended = None  # what was written since then may be lost
                each.seen_bytes = self._runs.seen(each.trial).num_bytes
                if not (isinstance(cause, StoreError) and cause.refused):  # the others would fare no better
                    break
        return problem

    def _update(self, each: _Follower, closing: bool) -> None:
        if each.damaged:
            return
        try:
            if each.run is None and self._is_complete(each):
                return
            for rows in each.batches():
                self._write(each, rows, each.seen())
        except StorageError as damage:
            self._write(each, [each.damage_row(str(damage))], each.seen(alive=False))
            _log.error("%s: %s", self.name, damage)
        if each.run is not None and (closing or each.resting):
            seen = each.seen(alive=False)
            each.run.end(seen)
            each.ended = seen  # only now: if the call failed, the run is opened again
            each.restart()

    def _is_complete(self, each: _Follower) -> bool:
        """Whether the run was ended with all that the ledger has; also for a trial that has not begun."""
        if each.ended is None:
            each.ended = self._runs.seen(each.trial)
        if each.num_bytes != each.ended.num_bytes or each.ended.status == RUNNING:  # the driver was killed
            return False
        each.seen_bytes = each.ended.num_bytes
        return True

    def _write(self, each: _Follower, rows: Sequence[Row], seen: Seen) -> None:
        if each.run is None:
            each.run = self._runs.open(each.trial)
        first = each.run.records
        each.run.write([row for row in rows if row.record >= first], seen)
        each.seen_bytes = seen.num_bytes
