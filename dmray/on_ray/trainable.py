"""What a Tune trial runs: the trial itself, or a driver without work of its own that runs it in a Ray Train worker.

Ray Train restarts a worker that died (its machine was taken away, it was killed) and Tune restarts its own actors. The
trial continues from dmray's own checkpoint in all cases, so Ray's state on disk is disposable. A mistake of the user or
a bug would fail the same way again: it ends the trial at once, the ledger has it, and the sweep goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from dmray.coordination.commands import CommandWatcher, TrialPaused
from dmray.on_ray.trainable_config import TrainableConfig
from dmray.records.phase import PhaseWriter
from dmray.trial.job import TrialJob
from dmray.trial.log import TrialLog
from dmray.trial.publish import fetch_command

_REPORT_EVERY_S = 5.0  # a report waits for the controller's next poll, so it must stay rare


def run_through_train(config: dict[str, Any]) -> None:
    """Tune's function trainable for executor "train": one worker of Ray Train.

    It is no TorchTrainer: one worker needs no process group, which takes seconds and listens on all interfaces.
    """
    import ray.train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from dmray.on_ray.callbacks import TrainFailureCallback

    given = TrainableConfig.model_validate_json(config["trainable"])
    fetch_command(given.job)
    if not CommandWatcher(given.job.sweep_folder, given.job.command_number).should_continue():
        return  # starting a worker to find this out would take seconds
    _say_that_the_worker_starts(given.job)
    resources = {"CPU": given.resources.cpus_per_trial}
    if given.resources.gpus_per_trial:
        resources["GPU"] = given.resources.gpus_per_trial
    DataParallelTrainer(
        run_in_worker,
        train_loop_config={"trainable": config["trainable"]},
        scaling_config=ray.train.ScalingConfig(
            num_workers=1,
            use_gpu=given.resources.gpus_per_trial > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=given.job.trial.trial_id,
            storage_path=given.ray_storage,
            failure_config=ray.train.FailureConfig(max_failures=given.faults.worker_restarts),
            callbacks=[TuneReportCallback(), TrainFailureCallback(TrialLog(given.job.folder.log))],
        ),
    ).fit()


def _say_that_the_worker_starts(job: TrialJob) -> None:
    """Where the trial's folder is shared with the driver; nobody else would see it."""
    if job.has_manifest and job.sweep_folder.manifest.exists():
        with contextlib.suppress(OSError):
            job.folder.path.mkdir(parents=True, exist_ok=True)
        PhaseWriter(job.folder.phase, job.command_number, lambda words: None).enter("starting_worker")


def run_in_worker(config: dict[str, Any]) -> None:
    """Ray Train's loop function: the trial."""
    import ray.train

    _run(config, ray.train.report)


def run_in_tune(config: dict[str, Any]) -> None:
    """Tune's function trainable for executor "tune"."""
    import ray.tune

    _run(config, ray.tune.report)


TUNE_TRAINABLES = {"train": run_through_train, "tune": run_in_tune}


def _run(config: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    from dmray.on_ray.evaluation_pool import RemoteEvaluation
    from dmray.trial.run import run_trial

    given = TrainableConfig.model_validate_json(config["trainable"])
    try:
        run_trial(given.job, RemoteEvaluation(given.dispatcher_name), _Reporter(report))
    except TrialPaused:
        return
    except Exception as cause:
        if is_transient(cause):
            raise  # Ray tries again within the fault budget
        return  # run_trial has recorded it; another attempt would fail the same way


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

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self._report = report
        self._last = float("-inf")

    def __call__(self, step: int, score: float | None) -> None:
        if time.monotonic() - self._last >= _REPORT_EVERY_S:
            self._report({"step": step, "normalized_score": score})
            self._last = time.monotonic()
