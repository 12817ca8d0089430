"""The evaluation service of processes on this machine: the calling one, or several that share the cohorts."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager

from dmray.inference.evaluation import run_work
from dmray.policies import PolicySnapshot
from dmray.rollout import EpisodeRecord, EvaluationRequest, cohorts
from dmray.trial.evaluation import EvaluationFuture, EvaluationService


@contextmanager
def local_evaluation(workers: int, deterministic: bool) -> Iterator[EvaluationService]:
    """Evaluate in this process (one worker) or in several processes, with the settings of an evaluation actor.

    At the end of the block no cohort begins any more; those that run are waited for.
    """
    if workers == 1:
        yield _InThisProcess(deterministic)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield _InProcesses(pool, deterministic)
    finally:
        pool.shutdown(cancel_futures=True)


class _InThisProcess:
    """`submit` returns when the episodes are done, or have failed."""

    def __init__(self, deterministic: bool) -> None:
        self._deterministic = deterministic

    def submit(self, snapshot: PolicySnapshot, request: EvaluationRequest) -> EvaluationFuture:
        done: EvaluationFuture = Future()
        try:
            works = [(snapshot, request, cohort, self._deterministic) for cohort in cohorts(request)]
            done.set_result(tuple(record for work in works for record in run_work(work)))
        except Exception as cause:  # noqa: BLE001 - whoever asks for the result gets it
            done.set_exception(cause)
        return done


class _InProcesses:
    """A cohort is the unit of work, as for evaluation actors."""

    def __init__(self, pool: Executor, deterministic: bool) -> None:
        self._pool, self._deterministic = pool, deterministic

    def submit(self, snapshot: PolicySnapshot, request: EvaluationRequest) -> EvaluationFuture:
        parts = [
            self._pool.submit(run_work, (snapshot, request, cohort, self._deterministic)) for cohort in cohorts(request)
        ]
        return _joined(parts)


def _joined(parts: list[Future[tuple[EpisodeRecord, ...]]]) -> EvaluationFuture:
    """A future that is done when all parts are; it has their records in order, or the error of one."""
    whole: EvaluationFuture = Future()
    left, lock = len(parts), threading.Lock()

    def one_is_done(_: Future[tuple[EpisodeRecord, ...]]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        failed = [part for part in parts if part.cancelled() or part.exception() is not None]
        if failed and failed[0].cancelled():
            whole.cancel()
        elif failed:
            whole.set_exception(failed[0].exception())
        else:
            whole.set_result(tuple(record for part in parts for record in part.result()))

    for part in parts:
        part.add_done_callback(one_is_done)
    return whole
