"""A trial's evaluations beside its training: handed over or left out, collected in the order of their steps, recorded.

At most `max_pending_evaluations` are open. Their snapshots stay in the checkpoint until their episodes are recorded, so
an attempt that dies loses none: the next one submits them again.
"""

from __future__ import annotations

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
    distinct,
    read_ledger,
    write_episode_table,
)
from dmray.rollout import EpisodeRecord, EvaluationRequest
from dmray.trial.cadence import may_be_best
from dmray.trial.checkpoints import Origin, save_checkpoint, to_arrays, to_tensors
from dmray.trial.evaluation import EvaluationFuture, EvaluationService, about, episode_rows, summarize
from dmray.trial.job import TrialJob
from dmray.trial.log import TrialLog
from dmray.trial.watchdog import Watchdog

_LOOK_EVERY_S = 1.0


class PendingEvaluations:
    """`latest` is the headline score recorded last in this attempt, `scores` those of whole evaluations by step.

    Evaluations at the trial's rungs and after its last step are whole, and never left out.
    """

    def __init__(
        self, job: TrialJob, service: EvaluationService, request: EvaluationRequest, origin: Origin, watchdog: Watchdog
    ) -> None:
        self._job, self._service, self._request, self._origin, self._watchdog = job, service, request, origin, watchdog
        self._ledger, self._log = Ledger(job.folder.ledger), TrialLog(job.folder.log)
        self._open: dict[int, _PendingEvaluation] = {}
        records = read_ledger(job.folder.ledger)
        self._settled = {record.step for record in records if isinstance(record, EvaluationDone | EvaluationSkipped)}
        self._rungs = rungs_of(job.early_stopping, job.trial)
        self.latest: float | None = None
        self.scores = {
            record.step: record.headline.normalized_mean
            for record in distinct(records)
            if isinstance(record, EvaluationDone) and not record.quick
        }

    @property
    def best(self) -> tuple[int, float] | None:
        """The step and the score of the whole evaluation with the highest one (ties: the earlier step)."""
        return max(self.scores.items(), key=lambda item: (item[1], -item[0]), default=None)

    def offer(self, step: int, weights: Callable[[], PolicySnapshot]) -> None:
        """Have the weights after `step` evaluated, or leave that out where evaluations lag and the sweep says so."""
        self.collect(self._job.max_pending_evaluations)
        full = len(self._open) >= self._job.max_pending_evaluations
        if full and not self._counts(step) and self._job.when_evaluations_lag == "skip":
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
            while not wait([self._open[step].future], _LOOK_EVERY_S).done:
                meanwhile()
            evaluation = self._open.pop(step)
            episodes = evaluation.future.result()
            results = summarize(evaluation.request, episodes)
            if evaluation.request != self._request and may_be_best(results[0], self.best[1] if self.best else None):
                self._submit(step, evaluation.weights, whole=True)
            else:
                self._record(step, evaluation, episodes, results)

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """The snapshots of the open ones, by step."""
        return {step: to_tensors(item.weights.weights) for step, item in self._open.items()}

    def load_state_dict(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Submit those again that were open."""
        for step, weights in state.items():
            self._submit(step, PolicySnapshot(self._origin.recipe, to_arrays(weights)))

    def _counts(self, step: int) -> bool:
        """Whether something is decided by it."""
        return step == self._job.trial.training.steps or step in self._rungs

    def _submit(self, step: int, weights: PolicySnapshot, whole: bool = False) -> None:
        if step not in self._settled:
            request = self._request
            if not whole and not self._counts(step):
                request = replace(request, episodes=self._job.trial.evaluation.quick_episodes or request.episodes)
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
        score = self.latest = done.headline.normalized_mean
        if not done.quick and (self.best is None or score > self.best[1]):
            best: dict[str, Any] = {"step": step, "score": score, "weights": to_tensors(evaluation.weights.weights)}
            save_checkpoint(self._job.folder.best_checkpoint, self._origin, best)
        table = self._job.folder.episode_table(step)
        write_episode_table(table, episode_rows(evaluation.request, episodes), about(evaluation.request, step))
        self._ledger.append(done)
        self._settled.add(step)
        if not done.quick:
            self.scores[step] = score
        self._log.write(f"evaluation after step {step:,}: {score:.2f} normalized, {done.wall_s:.1f} s")


class _PendingEvaluation(NamedTuple):
    """A snapshot that is being evaluated."""

    weights: PolicySnapshot
    request: EvaluationRequest
    future: EvaluationFuture
    submitted: float
