"""One Tune trial: a driver without work of its own, which runs the trial in a Ray Train worker, or the trial itself.

Ray Train restarts a worker that died (its machine was taken, it was killed) and Tune restarts its own actors; the trial
continues from dmray's own checkpoint in all cases, so Ray's state on disk is disposable. A mistake of the user or a bug
would fail the same way again: it ends the trial at once, recorded in its ledger, and the sweep goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dmray.coordination.commands import CommandWatcher, TrialPaused
from dmray.specs import FaultSpec, ResourcesSpec, Spec
from dmray.trial.job import TrialJob
from dmray.trial.log import TrialLog
from dmray.trial.publish import fetch_command

if TYPE_CHECKING:
    from dmray.training import Team

_LONGEST_EVALUATION_S = 86_400  # for which workers wait that only train
_REPORT_EVERY_S = 5.0  # a report waits for the controller's next poll, so it must stay rare


class TrainableConfig(Spec):
    """What a Tune trial is given, as JSON."""

    job: TrialJob
    resources: ResourcesSpec
    faults: FaultSpec
    dispatcher_name: str
    ray_storage: str  # a path or a URL that every machine sees

    @property
    def tune_restarts(self) -> int:
        """How often Tune starts an actor of its own again."""
        return self.faults.driver_restarts if self.resources.executor == "train" else self.faults.worker_restarts


def run_through_train(config: dict[str, Any]) -> None:
    """Tune's function trainable for executor "train": one TorchTrainer, its workers on one machine."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from dmray.on_ray.failure_callbacks import TrainFailureCallback

    given = TrainableConfig.model_validate_json(config["trainable"])
    fetch_command(given.job)
    if not CommandWatcher(given.job.sweep_folder, given.job.command_number).should_continue():
        return  # a worker would take seconds to say the same
    workers = given.resources.workers_per_trial
    resources = {"CPU": given.resources.cpus_per_trial / workers}
    if given.resources.gpus_per_trial:
        resources["GPU"] = given.resources.gpus_per_trial / workers
    TorchTrainer(
        run_in_worker,
        train_loop_config={"trainable": config["trainable"]},
        # small sums on one machine: NCCL is not needed, and its failures leak GPUs
        torch_config=TorchConfig(backend="gloo", timeout_s=_LONGEST_EVALUATION_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=given.resources.gpus_per_trial > 0,
            resources_per_worker=resources,
            placement_strategy="STRICT_PACK",
        ),
        run_config=ray.train.RunConfig(
            name=given.job.trial.trial_id,
            storage_path=given.ray_storage,
            failure_config=ray.train.FailureConfig(max_failures=given.faults.worker_restarts),
            callbacks=[TuneReportCallback(), TrainFailureCallback(TrialLog(given.job.folder.log))],
        ),
    ).fit()


def run_in_worker(config: dict[str, Any]) -> None:
    """Ray Train's loop function: the trial, or beside its leader a share of its batches."""
    import ray.train

    if ray.train.get_context().get_world_size() == 1:
        _run(config, ray.train.report)
        return
    from dmray.training import Team
    from dmray.trial.following import follow_trial

    team = Team()
    if team.leads:
        try:
            _run(config, lambda report: None, team)  # a report to Ray waits for all workers
        finally:
            team.dismiss()
    else:
        follow_trial(TrainableConfig.model_validate_json(config["trainable"]).job, team)


def run_in_tune(config: dict[str, Any]) -> None:
    """Tune's function trainable for executor "tune"."""
    import ray.tune

    _run(config, ray.tune.report)


TUNE_TRAINABLES = {"train": run_through_train, "tune": run_in_tune}


def _run(config: dict[str, Any], report: Callable[[dict[str, Any]], None], team: Team | None = None) -> None:
    from dmray.on_ray.evaluation_pool import RemoteEvaluation
    from dmray.trial.run import run_trial

    given = TrainableConfig.model_validate_json(config["trainable"])
    try:
        run_trial(given.job, RemoteEvaluation(given.dispatcher_name), _Reporter(report), team)
    except TrialPaused:
        return
    except Exception as cause:
        if is_transient(cause):
            raise  # tried again within the fault budget
        return  # recorded by run_trial; trying again would fail the same way


def is_transient(cause: Exception) -> bool:
    """Whether a failure came from outside (a lost actor or node, a full disk), so that another attempt may do better.

    What an evaluation actor raised comes wrapped as Ray's; it is judged by what is inside.
    """
    from ray.exceptions import RayError, RayTaskError

    inside: BaseException | None = cause
    while isinstance(inside, RayTaskError):
        inside = inside.cause
    return isinstance(inside, RayError | OSError)


class _Reporter:
    """Tells Ray how far the trial is."""

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self._report = report
        self._last = float("-inf")

    def __call__(self, step: int, score: float | None) -> None:
        if time.monotonic() - self._last >= _REPORT_EVERY_S:
            self._report({"step": step, "normalized_score": score})
            self._last = time.monotonic()
