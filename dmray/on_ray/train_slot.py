"""One run of Ray Train in the process of a Tune actor: its worker takes trial after trial, as long as the actor lives.

Ray Train would start four processes beside the worker for each run, and a placement group of its own. Here its
controller is a thread of the Tune actor, its worker runs in the second bundle of the actor's placement group (Tune
frees it, however the actor ends), and what dmray does not use is not started: Ray Data, the autoscaler's requests
(the placement group is one), warnings of preemption (a trial continues from its checkpoint).
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ReportCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy, _is_preemption_failure
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import WorkerGroupError

from dmray.on_ray.handover import Handover
from dmray.on_ray.placement import trial_bundle
from dmray.on_ray.trainable_config import TrainableConfig

_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # a trial's end is a report, and waits for so long; Ray's is 2 s
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process a slot
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",  # it would take over the logging of Tune's process
}
_WORKERS_BUNDLE = 1  # of the placement group; 0 has the Tune actor


class TrainSlot:
    """A run of Ray Train that began with the first trial of this process, and takes the others too."""

    def __init__(self, loop: Callable[[], None], receive: Callable[[str], None], config: TrainableConfig) -> None:
        """`loop`: what the worker does until it is ended; `receive` takes a trial for it, in the worker's process."""
        os.environ |= {name: value for name, value in _SETTINGS.items() if name not in os.environ}
        self.handover = Handover()
        self._trainer = _Trainer(
            loop,
            scaling_config=ray.train.ScalingConfig(
                num_workers=1,
                use_gpu=config.resources.gpus_per_trial > 0,
                resources_per_worker=trial_bundle(config.resources),
            ),
            run_config=ray.train.RunConfig(
                name=f"slot-{ray.get_runtime_context().get_actor_id()}", storage_path=config.ray_storage
            ),
        )
        self._trainer.callback = _SlotCallback(self.handover, receive)
        threading.Thread(target=self._train, name="dmray-train", daemon=True).start()

    def _train(self) -> None:
        try:
            self._trainer.fit()
        except Exception as cause:  # noqa: BLE001 - Tune's thread, which waits for the trial, raises it
            self.handover.train_ended(cause)
        else:
            self.handover.train_ended(RuntimeError("Ray Train ended, and its worker never should"))


class _Trainer(DataParallelTrainer):  # type: ignore[misc]
    callback: _SlotCallback

    def _create_default_callbacks(self) -> list[Any]:
        without = DatasetsCallback, PlacementGroupCleanerCallback
        callbacks = [each for each in super()._create_default_callbacks() if not isinstance(each, without)]
        return [*callbacks, self.callback]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        given["failure_policy"] = _FailurePolicy(self.run_config.failure_config, self.callback.handover)
        given["scaling_policy"] = _ScalingPolicy(self.scaling_config)
        controller = _Controller(**given)
        asyncio.run(controller.run())
        return controller.get_result()


class _SlotCallback(WorkerGroupCallback, ReportCallback):  # type: ignore[misc]
    """Tells the handover what happens to the worker."""

    def __init__(self, handover: Handover, receive: Callable[[str], None]) -> None:
        self.handover, self._receive = handover, receive

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        [worker] = worker_group.get_workers()
        self.handover.worker_started(lambda trial: worker.execute_async(self._receive, trial))

    def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:
        self.handover.reported(metrics[0])


class _FailurePolicy(DefaultFailurePolicy):  # type: ignore[misc]
    """Ray Train's, but a failure of the worker counts for the trial that it held."""

    def __init__(self, failure_config: Any, handover: Handover) -> None:
        super().__init__(failure_config)
        self._handover = handover

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        if not isinstance(training_failed_error, WorkerGroupError):
            return super().make_decision(training_failed_error)
        causes = list(training_failed_error.worker_failures.values())
        again = self._handover.worker_failed(causes, _is_preemption_failure(training_failed_error))
        return FailureDecision.RETRY if again else FailureDecision.RAISE


class _ScalingPolicy(FixedScalingPolicy):  # type: ignore[misc]
    """One worker. The autoscaler knows of it by the placement group, so it gets no request besides."""

    def _maybe_send_resource_request(self) -> None: ...

    def _send_resource_request(self) -> None: ...

    def _cancel_resource_request(self) -> None: ...


class _WorkerGroup(WorkerGroup):  # type: ignore[misc]
    """The worker in the placement group of the process."""

    def _create_placement_group(self, *given: Any) -> _TunesGroup:
        return _TunesGroup(ray.util.get_current_placement_group())

    def _create_workers(self, *given: Any, **named: Any) -> Any:
        return super()._create_workers(*given, **named | {"placement_group_bundle_indices": [_WORKERS_BUNDLE]})


class _TunesGroup(DefaultPlacementGroupHandle):  # type: ignore[misc]
    def shutdown(self) -> None:
        """The group stays: another worker may follow, and Tune removes it in the end."""


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _WorkerGroup
