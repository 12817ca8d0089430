"""A trial's part in the early stopping of its sweep: it posts its scores at the rungs, and judges itself.

The worker decides, so it is the same on Ray and without, and no driver's memory is needed: scores are on the board,
verdicts in the ledger, where the first one of a rung counts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from dmray.errors import StoreUnavailableError
from dmray.planning.successive_halving import holds, judge, rungs_of
from dmray.records import Ledger, LedgerRecord, RungDecision
from dmray.specs import EarlyStoppingSpec
from dmray.trial.job import TrialJob
from dmray.trial.log import TrialLog
from dmray.trial.rung_board import RungBoard

_log = logging.getLogger(__name__)
_AGAIN_AFTER_S = 10.0


class EarlyStopping:
    """Of one attempt. Without a rule there are no rungs, and nothing is done.

    `scores` are always those of the trial's whole evaluations, by step. An object store that does not answer makes a
    verdict late: training goes on meanwhile.

    Raises (both methods):
        StorageError, OSError: the board cannot be written or read.
    """

    def __init__(self, job: TrialJob, records: Sequence[LedgerRecord]) -> None:
        self._job, self._rule = job, job.early_stopping
        self._ledger, self._log = Ledger(job.folder.ledger), TrialLog(job.folder.log)
        self._board = RungBoard(job)
        self._judged: dict[int, RungDecision] = {}
        for record in records:
            if isinstance(record, RungDecision):
                self._judged.setdefault(record.step, record)
        self._posted: set[int] = set()
        self._next_try = float("-inf")

    def verdict(self, scores: Mapping[int, float]) -> RungDecision | None:
        """Post, and judge the trial at each rung where it has a score and no verdict; the verdict that ends it."""
        self._advance(scores, self._judge)
        against = [record for record in self._judged.values() if holds(self._rule, self._job.trial, record)]
        return min(against, key=lambda record: record.step, default=None)

    def post(self, scores: Mapping[int, float]) -> None:
        """Put up what the others do not know yet, where nothing is left to decide for this trial itself."""
        self._advance(scores, lambda rule, step, score: None)

    def _advance(self, scores: Mapping[int, float], then: Callable[[EarlyStoppingSpec, int, float], None]) -> None:
        if self._rule is None or time.monotonic() < self._next_try:
            return
        group = self._rule.competitors_of(self._job.trial)
        try:
            for step in rungs_of(self._rule, self._job.trial):
                if step in scores and step not in self._posted:
                    self._board.post(group, step, self._job.trial.trial_id, scores[step])
                    self._posted.add(step)
                if step in scores:
                    then(self._rule, step, scores[step])
        except StoreUnavailableError as problem:
            _log.warning("%s; early stopping waits meanwhile", problem)
            self._next_try = time.monotonic() + _AGAIN_AFTER_S

    def _judge(self, rule: EarlyStoppingSpec, step: int, score: float) -> None:
        if step in self._judged:
            return
        posted = self._board.scores(rule.competitors_of(self._job.trial), step)
        peers = [theirs for trial_id, theirs in posted.items() if trial_id != self._job.trial.trial_id]
        judged = self._judged[step] = judge(rule, step, score, peers, time.time())
        self._ledger.append(judged)
        self._log.write(
            f"early stopping at step {step:,}: {judged.verdict}; {score:.2f}, {judged.better} of {judged.peers} others "
            "are better"
        )
