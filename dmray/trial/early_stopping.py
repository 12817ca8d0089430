"""Early stopping as one trial takes part in it: it posts its scores at the rungs and decides about itself.

The worker decides, so it is the same on Ray and without, and needs no state in the driver: the scores are on the board,
the decisions in the ledger, where the first one of a rung counts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from dmray.errors import StoreUnavailableError
from dmray.planning.successive_halving import competitors_of, decide, decision_holds, rungs_of
from dmray.progress.trial_status import TrialHistory
from dmray.records import Ledger, LedgerRecord, RungDecision, identity_of
from dmray.records.identity import joined
from dmray.specs import EarlyStoppingSpec
from dmray.trial.job import TrialJob
from dmray.trial.log import TrialLog
from dmray.trial.rung_board import RungBoard

_log = logging.getLogger(__name__)
_RETRY_AFTER_S = 10.0


class EarlyStopping:
    """For one attempt. Without a rule there are no rungs, and nothing is done.

    `scores` are always those of the trial's evaluations over all episodes, by step. While an object store does not
    answer, training goes on and the decision comes later.

    Raises (both methods):
        StorageError, OSError: the board cannot be written or read.
    """

    def __init__(self, job: TrialJob, records: Sequence[LedgerRecord]) -> None:
        """`records` are those of the trial's ledger that count, to the beginning of this attempt."""
        self._job, self._rule = job, job.early_stopping
        self._competitors = _competitors(job, records)
        self._ledger, self._log = Ledger(job.folder.ledger, create=False), TrialLog(job.folder.log)
        self._board = RungBoard(job)
        self._decisions: dict[int, RungDecision] = {}
        for record in records:
            if isinstance(record, RungDecision):
                self._decisions.setdefault(record.step, record)
        self._posted: set[int] = set()
        self._next_try = float("-inf")

    def decide(self, scores: Mapping[int, float]) -> RungDecision | None:
        """Post the scores, decide at each rung that has a score and no decision; the decision that ends the trial."""
        self._visit_rungs(scores, decides=True)
        to_stop = [each for each in self._decisions.values() if decision_holds(self._rule, self._job.trial, each)]
        return min(to_stop, key=lambda decision: decision.step, default=None)

    def post(self, scores: Mapping[int, float]) -> None:
        """Post the scores for the other trials; this one has ended, so it decides nothing."""
        self._visit_rungs(scores, decides=False)

    def _visit_rungs(self, scores: Mapping[int, float], decides: bool) -> None:
        if self._rule is None or time.monotonic() < self._next_try:
            return
        try:
            for step in rungs_of(self._rule, self._job.trial):
                if step not in scores:
                    continue
                if step not in self._posted:
                    self._ledger.require()
                    self._board.post(self._competitors, step, self._job.trial.trial_id, scores[step])
                    self._posted.add(step)
                if decides and step not in self._decisions:
                    self._decide_at(self._rule, step, scores[step])
        except StoreUnavailableError as problem:
            _log.warning("%s; early stopping waits meanwhile", problem)
            self._next_try = time.monotonic() + _RETRY_AFTER_S

    def _decide_at(self, rule: EarlyStoppingSpec, step: int, score: float) -> None:
        posted = self._board.scores(self._competitors, step)
        peers = [theirs for trial_id, theirs in posted.items() if trial_id != self._job.trial.trial_id]
        decision = self._decisions[step] = decide(rule, step, score, peers, time.time())
        self._ledger.append(decision)
        self._log.write(
            f"early stopping at step {step:,}: {decision.action}; score {score:z.2f}, "
            f"{decision.num_better} of {decision.num_peers} others are better"
        )


def _competitors(job: TrialJob, records: Sequence[LedgerRecord]) -> str:
    """The id of the trials whose scores are compared with this one's: of all its attempts that left results."""
    if job.early_stopping is None:
        return ""
    history = TrialHistory(job.trial)
    for record in records:
        history.take(record)
    identity = joined([*history.identities, identity_of(job.trial, history.provenance)])
    assert identity is not None
    return competitors_of(job.early_stopping, job.trial, identity)
