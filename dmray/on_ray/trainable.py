"""What a Tune trial runs: the trial itself, or a driver without work of its own that runs it in a Ray Train worker.

Ray Train replaces a worker that died (its machine was taken away, it was killed) and Tune restarts its own actors. The
trial continues from dmray's own checkpoint in all cases, so Ray's state on disk is disposable. A mistake of the user or
a bug would fail the same way again: it ends the trial at once, the ledger has it, and the sweep goes on.
"""

from __future__ import annotations

import contextlib
import gc
import time
from typing import TYPE_CHECKING, Any

from dmray.coordination.commands import CommandWatcher, TrialPaused
from dmray.on_ray.handover import Received, Report
from dmray.on_ray.trainable_config import TrainableConfig
from dmray.records.phase import PhaseWriter
from dmray.trial.job import TrialJob, fetch_command

if TYPE_CHECKING:
    from dmray.on_ray.train_slot import TrainSlot

_REPORT_EVERY_S = 5.0  # a report waits for the controller's next poll, so it must stay rare
_slot: TrainSlot | None = None  # of this process, if it is a Tune actor with executor "train"
_received = Received()  # by this process, if it is a worker of Ray Train


def run_through_train(config: dict[str, Any]) -> None:
    """Tune's function trainable for executor "train": hands the trial to the Ray Train worker of this process."""
    import ray.tune

    from dmray.on_ray.train_slot import TrainSlot

    global _slot
    given = TrainableConfig.model_validate_json(config["trainable"])
    fetch_command(given.job)
    if not CommandWatcher(given.job.sweep_folder, given.job.command_number).should_continue():
        return  # starting a worker to find this out would take seconds
    if _slot is None or _slot.handover.has_ended:
        _slot = TrainSlot(run_received_trials, receive_trial, given)
    if not _slot.handover.has_worker:
        _say_that_the_worker_starts(given.job)
    for metrics in _slot.handover.run(given):
        ray.tune.report(metrics)


def _say_that_the_worker_starts(job: TrialJob) -> None:
    """Where the trial's folder is shared with the driver; nobody else would see it."""
    if job.has_manifest and job.sweep_folder.manifest.exists():
        with contextlib.suppress(OSError):
            job.folder.path.mkdir(parents=True, exist_ok=True)
        PhaseWriter(job.folder.phase, job.command_number, lambda words: None).enter("starting_worker")


def receive_trial(trial: str) -> None:
    """Take a trial, a `TrainableConfig` as JSON. Ray Train calls this in the worker's process."""
    _received.put(trial)


def run_received_trials() -> None:
    """Ray Train's loop function: one trial after the other."""
    import ray.train

    _received.run_all(_run, ray.train.report)


def run_in_tune(config: dict[str, Any]) -> None:
    """Tune's function trainable for executor "tune"."""
    import ray.tune

    _run(TrainableConfig.model_validate_json(config["trainable"]), ray.tune.report)


TUNE_TRAINABLES = {"train": run_through_train, "tune": run_in_tune}


def _run(given: TrainableConfig, report: Report) -> bool:
    """Run a trial; whether this process is fit for another one: not if the trial failed.

    Raises transient errors: Ray tries again within the fault budget.
    """
    from dmray.on_ray.evaluation_pool import RemoteEvaluation
    from dmray.trial.run import run_trial

    try:
        run_trial(given.job, RemoteEvaluation(given.dispatcher_name), _Reporter(report))
    except TrialPaused:
        return True
    except Exception as cause:
        if is_transient(cause):
            raise
        return False  # run_trial has recorded it; another attempt would fail the same way
    finally:
        _free_memory()
    return True


def _free_memory() -> None:
    """What a trial leaves in cycles, and the GPU memory that torch keeps for itself: other trials share the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def is_transient(cause: Exception) -> bool:
    """Whether a failure came from outside (a lost actor or node, a full disk), so that another attempt may succeed.

    Ray wraps what an evaluation actor raised; the exception inside decides.
    """
    from ray.exceptions import RayError, RayTaskError

    inside: BaseException | None = cause
    while isinstance(inside, RayTaskError):
        inside = inside.cause
    return isinstance(inside, RayError | OSError)


class _Reporter:
    """Reports the trial's progress to Ray."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._last = float("-inf")

    def __call__(self, step: int, score: float | None) -> None:
        if time.monotonic() - self._last >= _REPORT_EVERY_S:
            self._report({"step": step, "normalized_score": score})
            self._last = time.monotonic()
