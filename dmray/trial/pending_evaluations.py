"""A trial's evaluations beside its training: submitted or skipped, collected in the order of their steps, recorded.

At most `max_pending_evaluations` are pending. Their snapshots stay in the checkpoint until their episodes are recorded,
so an attempt that dies loses none: the next attempt submits them again.

An evaluation of few episodes (`quick_episodes`) is enough where a new best score is ruled out (`may_be_best`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from dmray.planning.successive_halving import rungs_of
from dmray.policies import PolicySnapshot
from dmray.records import (
    EvaluationDone,
    EvaluationSkipped,
    Ledger,
    TargetResult,
    counting,
    distinct,
    read_ledger,
    write_episode_table,
)
from dmray.records.phase import PhaseWriter
from dmray.rollout import EpisodeRecord, EvaluationRequest
from dmray.tasks import protocol_of
from dmray.trial.checkpoints import Origin, save_checkpoint, to_arrays, to_tensors
from dmray.trial.evaluation import EvaluationFuture, EvaluationService, about, episode_rows, summarize
from dmray.trial.job import TrialJob
from dmray.trial.log import TrialLog
from dmray.trial.watchdog import Watchdog

_log = logging.getLogger(__name__)
_POLL_S = 1.0
_STANDARD_ERRORS = 2.0


def may_be_best(quick: TargetResult, best: float | None) -> bool:
    """Whether all episodes must be run, because the weights may be better than the best so far.

    That is so if no full evaluation is done yet (`best` None), or if the quick score plus two of its standard errors
    reaches the best full score. Scores are normalized. A single episode has no standard error and rules nothing out.
    """
    episodes = len(quick.returns)
    if best is None or episodes == 1:
        return True
    standard_error = quick.normalized_std / math.sqrt(episodes - 1)
    return quick.normalized_mean + _STANDARD_ERRORS * standard_error >= best


class PendingEvaluations:
    """`latest` is the normalized score that this attempt recorded last, `scores` those of full evaluations by step.

    Evaluations at the trial's rungs and after its last step are full, and never skipped.
    """

    def __init__(
        self,
        job: TrialJob,
        service: EvaluationService,
        request: EvaluationRequest,
        origin: Origin,
        watchdog: Watchdog,
        phases: PhaseWriter,
    ) -> None:
        self._job, self._service, self._request, self._origin, self._watchdog = job, service, request, origin, watchdog
        self._phases = phases
        self._ledger, self._log = Ledger(job.folder.ledger, create=False), TrialLog(job.folder.log)
        self._open: dict[int, _PendingEvaluation] = {}
        self._lost_best: int | None = None
        self._unrecorded_best: int | None = None
        records = counting(read_ledger(job.folder.ledger))
        self._settled = {record.step for record in records if isinstance(record, EvaluationDone | EvaluationSkipped)}
        self._rungs = rungs_of(job.early_stopping, job.trial)
        self.latest: float | None = None
        self.scores = {
            record.step: record.first_target.normalized_mean
            for record in distinct(records)
            if isinstance(record, EvaluationDone) and not record.quick
        }

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the full evaluation with the highest score (ties: the earlier step)."""
        return max(self.scores.items(), key=lambda item: (item[1], -item[0]), default=None)

    def offer(self, step: int, weights: Callable[[], PolicySnapshot]) -> None:
        """Submit the weights after `step`, or skip them if too many evaluations are pending and the sweep allows it."""
        self.collect(self._job.max_pending_evaluations)
        lagging = len(self._open) >= self._job.max_pending_evaluations
        if lagging and not self._is_decisive(step) and self._job.when_evaluations_lag == "skip":
            if step not in self._settled:
                self._ledger.append(EvaluationSkipped(time_s=time.time(), step=step))
        else:
            self._submit(step, weights())

    def collect(self, most_open: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Record finished evaluations in the order of their steps; wait while more than `most_open` are open.

        `meanwhile` is called every second of waiting; what it raises ends the waiting, and nothing is lost.
        """
        while self._open:
            step = min(self._open)
            if not self._open[step].future.done() and len(self._open) <= most_open:
                return
            self._watchdog.pause()
            while not wait([self._open[step].future], _POLL_S).done:
                self._phases.enter("waiting_for_evaluations")
                meanwhile()
            evaluation = self._open.pop(step)
            episodes = evaluation.future.result()
            results = summarize(evaluation.request, episodes)
            if evaluation.request != self._request and may_be_best(results[0], self.best[1] if self.best else None):
                self._submit(step, evaluation.weights, full=True)
            else:
                self._record(step, evaluation, episodes, results)

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """The snapshots of the open ones, by step."""
        return {step: to_tensors(item.weights.weights) for step, item in self._open.items()}

    def expect(self, lost_best: int | None, unrecorded_best: int | None) -> None:
        """Call before anything is submitted, where `best.pt` is not of the best recorded step.

        `lost_best`: the best step, whose weights are saved when they come by again. `unrecorded_best`: the step of
        `best.pt`, whose evaluation will be recorded again.
        """
        self._lost_best, self._unrecorded_best = lost_best, unrecorded_best

    def load_state_dict(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Submit the evaluations again that were pending."""
        for step, weights in state.items():
            self._submit(step, PolicySnapshot(self._origin.recipe, to_arrays(weights)))

    def _is_decisive(self, step: int) -> bool:
        """Whether early stopping or the trial's result is decided by the evaluation at `step`."""
        return step == self._job.trial.training.steps or step in self._rungs

    def _submit(self, step: int, weights: PolicySnapshot, full: bool = False) -> None:
        if step == self._lost_best:
            self._lost_best = None
            self._save_best(step, self.scores[step], weights)
        if step not in self._settled:
            request = self._request
            if not full and not self._is_decisive(step):
                request = replace(request, episodes=self._job.trial.evaluation.quick_episodes or request.episodes)
            self._phases.enter("evaluating", f"step {step:,}")  # until the next step: a service may block meanwhile
            submitted = time.perf_counter()
            future = self._service.submit(weights, request)
            self._open[step] = _PendingEvaluation(weights, request, future, submitted)

    def _record(
        self,
        step: int,
        evaluation: _PendingEvaluation,
        episodes: tuple[EpisodeRecord, ...],
        results: list[TargetResult],
    ) -> None:
        done = EvaluationDone(
            time_s=time.time(),
            step=step,
            decode=self._request.decode,
            seed=self._request.seed,
            quick=evaluation.request != self._request,
            targets=results,
            wall_s=time.perf_counter() - evaluation.submitted,
        )
        score = self.latest = done.first_target.normalized_mean
        is_best = not done.quick and (self.best is None or score > self.best[1])
        self._ledger.require()
        table = self._job.folder.episode_table(step)
        made = about(evaluation.request, step, protocol_of(self._job.trial.dataset))
        write_episode_table(table, episode_rows(evaluation.request, episodes), made)
        self._ledger.append(done)
        self._settled.add(step)
        if not done.quick:
            self.scores[step] = score
        if is_best:  # after the record: the step of best.pt is always in the ledger
            self._save_best(step, score, evaluation.weights)
        elif step == self._unrecorded_best:  # on a GPU, whose repeated steps are not the same to the last bit
            self._job.folder.best_checkpoint.unlink(missing_ok=True)
            _log.warning("step %d is not the best when it is repeated; best.pt had its weights and is removed", step)
        self._log.write(f"evaluation after step {step:,}: {score:z.2f} normalized, {done.wall_s:z.1f} s")

    def _save_best(self, step: int, score: float, weights: PolicySnapshot) -> None:
        self._ledger.sync()
        best: dict[str, Any] = {"step": step, "score": score, "weights": to_tensors(weights.weights)}
        save_checkpoint(self._job.folder.best_checkpoint, self._origin, best)


class _PendingEvaluation(NamedTuple):
    """A snapshot that is being evaluated."""

    weights: PolicySnapshot
    request: EvaluationRequest
    future: EvaluationFuture
    submitted: float
