"""A ledger read for its scores alone, many times faster than record by record.

Evaluations hold a number an episode, which a report of thousands of trials has no use for; their lines are read by one
pattern. Lines that do not fit it, and all rare ones, are read as records, with the same checks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from dmray.errors import StorageError
from dmray.records.records import (
    AttemptFailed,
    AttemptStarted,
    EvaluationDone,
    LedgerRecord,
    RungDecision,
    TrialDone,
    TrialStopped,
    ledger_line,
)
from dmray.records.scores import Score

_EVALUATION = re.compile(
    rb'\{"time_s":[^,]+,"kind":"evaluation","step":(\d+),"decode":"[^"]*","seed":\d+,"quick":(true|false),'
    rb'"targets":\[\{"target_return":([^,]+),"returns":\[[^\]]*\],"lengths":\[[^\]]*\],"return_mean":([^,]+),'
    rb'"return_std":[^,]+,"normalized_mean":([^,]+),"normalized_std":[^,]+,"length_mean":([^,}]+)\}.*"wall_s":([^,}]+)\}$'
)
_WORTH_PROCESSES = 2**30  # bytes: a few seconds' reading
_TRAIN = re.compile(rb'\{"time_s":[^,]+,"kind":"train","step":(\d+),')


@dataclass(frozen=True)
class ScoreSeries:
    """The headline scores of a trial in the order of their steps, each step once: arrays of one length.

    Its last and best are those of `dmray.records.scores`: of evaluations over all episodes alone.
    """

    step: np.ndarray
    normalized: np.ndarray
    return_mean: np.ndarray
    length_mean: np.ndarray
    quick: np.ndarray
    target_return: float | None

    def __len__(self) -> int:
        return len(self.step)

    def __iter__(self) -> Iterator[Score]:
        return map(self._at, range(len(self)))

    @cached_property
    def last(self) -> Score | None:
        """The evaluation with the highest step."""
        whole = self._whole
        return self._at(int(whole[-1])) if len(whole) else None

    @cached_property
    def best(self) -> Score | None:
        """The evaluation with the highest normalized score; of equals the earliest."""
        whole = self._whole
        return self._at(int(whole[self.normalized[whole].argmax()])) if len(whole) else None

    def mean_of_last(self, count: int) -> float | None:
        """The mean normalized score of the last `count` evaluations (of all, where there are fewer)."""
        whole = self._whole[-count:]
        return float(self.normalized[whole].mean()) if len(whole) else None

    @property
    def _whole(self) -> np.ndarray:
        return np.flatnonzero(~self.quick)

    def _at(self, place: int) -> Score:
        return Score(
            int(self.step[place]),
            float(self.normalized[place]),
            float(self.return_mean[place]),
            float(self.length_mean[place]),
            self.target_return,
            bool(self.quick[place]),
        )


@dataclass
class LedgerSummary:
    """What a report needs of a ledger. `begun`: it has a record; `steps`: the highest step that it tells of."""

    begun: bool = False
    steps: int = 0
    attempts: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    ended: TrialDone | None = None
    error: str | None = None
    failed: bool = False  # an error is its last word
    stopped: TrialStopped | None = None  # if that is its last word
    rungs: tuple[RungDecision, ...] = ()
    evaluation_s: float = 0.0
    scores: ScoreSeries = field(default_factory=lambda: _series([]))


def summarize_ledger(path: Path) -> LedgerSummary:
    """Read a ledger once. A torn last line is ignored; of several records of a step the first counts.

    Raises:
        StorageError: a line is no record; file and line are named.
    """
    summary, points = LedgerSummary(), dict[int, _Point]()
    if not path.exists():
        return summary
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break
            summary.begun, summary.failed, summary.stopped = True, False, None
            if train := _TRAIN.match(line):
                summary.steps = max(summary.steps, int(train[1]))
                continue
            point = _point_of(line)
            if point is None:
                record = _parsed(line, path, number)
                _note(summary, record)
                if not isinstance(record, EvaluationDone):
                    continue
                point = _Point(Score.of(record), record.wall_s)
            points.setdefault(point.score.step, point)
    summary.steps = max(summary.steps, max(points, default=0))
    summary.evaluation_s = sum(point.wall_s for point in points.values())
    summary.scores = _series([points[step].score for step in sorted(points)])
    return summary


def summarize_ledgers(paths: Sequence[Path]) -> list[LedgerSummary]:
    """`summarize_ledger` of each; many and large ones by as many processes as there are cores."""
    if sum(path.stat().st_size for path in paths if path.exists()) < _WORTH_PROCESSES:
        return [summarize_ledger(path) for path in paths]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return list(pool.map(summarize_ledger, paths, chunksize=8))


class _Point(NamedTuple):
    score: Score
    wall_s: float


def _point_of(line: bytes) -> _Point | None:
    found = _EVALUATION.match(line)
    if found is None:
        return None
    step, quick, target, return_mean, normalized, length, wall_s = found.groups()
    try:
        asked = None if target == b"null" else float(target)
        score = Score(int(step), float(normalized), float(return_mean), float(length), asked, quick == b"true")
        return _Point(score, float(wall_s))
    except ValueError:
        return None


def _parsed(line: bytes, path: Path, number: int) -> LedgerRecord:
    try:
        return ledger_line.validate_json(line)
    except ValidationError as invalid:
        raise StorageError(
            f"{path}:{number}: not a ledger record ({invalid.errors()[0]['msg']}); "
            "restore the file from a copy, or delete the trial's folder to run the trial again"
        ) from None


def _note(summary: LedgerSummary, record: LedgerRecord) -> None:
    match record:
        case AttemptStarted():
            summary.attempts, summary.provenance = summary.attempts + 1, record.provenance
        case AttemptFailed():
            summary.error, summary.failed = record.error, True
        case TrialStopped():
            summary.stopped = record
        case RungDecision() if record.step not in {rung.step for rung in summary.rungs}:
            summary.rungs = (*summary.rungs, record)
        case TrialDone():
            summary.ended = summary.ended or record
    summary.steps = max(summary.steps, getattr(record, "step", 0))


def _series(scores: list[Score]) -> ScoreSeries:
    def column(name: str, kind: type) -> np.ndarray:
        return np.array([getattr(score, name) for score in scores], dtype=kind)

    return ScoreSeries(
        step=column("step", int),
        normalized=column("normalized", float),
        return_mean=column("return_mean", float),
        length_mean=column("length_mean", float),
        quick=column("quick", bool),
        target_return=scores[-1].target_return if scores else None,
    )
