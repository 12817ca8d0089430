"""Runs the unfinished trials of a plan on Ray: Tune over the grid, a Train worker a trial, one evaluation pool."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from datetime import datetime

import ray
from ray import tune

from dmray.driver.store_session import Refresh, clear_ray_files, ray_storage_path
from dmray.errors import ClusterError, PluginError, StorageError
from dmray.methods import METHODS
from dmray.on_ray.callbacks import PauseStopper, TuneFailureCallback
from dmray.on_ray.evaluation_pool import NAMESPACE, EvaluationPool
from dmray.on_ray.liveness import RayWatch
from dmray.on_ray.placement import DRIVER_RESOURCE, Machines, Placement, machines_for_one_node, place_trials
from dmray.on_ray.trainable import TUNE_TRAINABLES
from dmray.on_ray.trainable_config import TrainableConfig
from dmray.planning.plan import Plan
from dmray.records import AttemptFailed, SweepFolder, TrialFolder, TrialStopped, read_ledger
from dmray.specs import TrialSpec
from dmray.trial.job import TrialJob
from dmray.trial.watchdog import note_hang

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the default of 2 s makes every report wait that long
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # dmray handles Ctrl-C: it stops the sweep and says how to resume
    "RAY_AIR_NEW_OUTPUT": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # nobody reads their files, and they leave some open
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # tens of lines for a worker that is restarted; see callbacks.py
}


_log = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S = 10.0


class RayRunner:
    """A runner on a Ray cluster: the one at `address`, or one started on this machine for the sweep."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address

    def run(
        self, plan: Plan, todo: Sequence[TrialSpec], folder: SweepFolder, refresh: Refresh = lambda: None
    ) -> list[TrialSpec]:
        """Run `todo` until each trial has ended, well or not (its ledger says which); the trials that were paused.

        Raises:
            ClusterError: no cluster answers, or not one trial fits on it.
            ClusterLostError: Ray ended, or does not answer any more.
            PluginError: a method was added in this process only.
        """
        _require_installed_methods(todo)
        clear_ray_files(plan.sweep, folder)  # of attempts that were killed; nothing resumes from them
        records_before = {trial.trial_id: _count_records(folder.trial(trial.trial_id)) for trial in todo}
        attempt = datetime.now().strftime("%Y%m%d-%H%M%S")
        jobs = [TrialJob.of(trial, plan.sweep, folder) for trial in todo]
        own_ray = self._address is None and not ray.is_initialized()
        watch = RayWatch(folder, jobs, plan.sweep.faults, own_ray)
        with watch.ending_in_time(), _connected(self._address, plan) as machines, watch.watching():
            placement = place_trials(plan.sweep.resources, machines, len(todo))
            _log.info(
                "%d trials to run, at most %d at a time, evaluation actors: %d, CPUs: %g, GPUs: %g",
                len(todo),
                placement.concurrent_trials,
                plan.sweep.resources.evaluation_actors,
                machines.cpus,
                machines.gpus,
            )
            pool = EvaluationPool.start(plan.sweep.resources, attempt, faults=plan.sweep.faults)
            watch.follow(pool.dispatcher)
            ray_storage = f"{ray_storage_path(plan.sweep, folder)}/{attempt}"
            trainables = [
                TrainableConfig(
                    job=job,
                    resources=plan.sweep.resources,
                    faults=plan.sweep.faults,
                    dispatcher_name=pool.dispatcher_name,
                    ray_storage=f"{ray_storage}/train",
                )
                for job in jobs
            ]
            out_of_attempts = _tune(trainables, placement, ray_storage, folder)
        refresh()
        for trial in todo:
            note_hang(folder.trial(trial.trial_id))  # of those that hung until their budget was spent
        clear_ray_files(plan.sweep, folder)
        ended = [trial for trial in todo if trial.trial_id not in out_of_attempts]
        return [trial for trial in ended if _is_paused(folder.trial(trial.trial_id), records_before[trial.trial_id])]


def _require_installed_methods(todo: Sequence[TrialSpec]) -> None:
    """Ray's workers are other processes, so a method must come from an installed package."""
    for name in dict.fromkeys(trial.method for trial in todo):
        if not METHODS.is_installed(name):
            raise PluginError(
                f"method '{name}' exists in this process only, so Ray's workers do not have it: use local=True, "
                "or install a package with the entry point 'dmray.methods' (docs/extending.md)"
            )


def _is_paused(folder: TrialFolder, records_before: int) -> bool:
    """Whether a trial, whose attempts are not spent, has recorded no end after its first `records_before` records."""
    if folder.done.exists():
        return False
    try:
        records = read_ledger(folder.ledger)
    except StorageError:  # damaged: it has failed, and its status says why
        return False
    return len(records) == records_before or not isinstance(records[-1], AttemptFailed | TrialStopped)


def _count_records(folder: TrialFolder) -> int:
    try:
        return len(read_ledger(folder.ledger))
    except StorageError:
        return 0


def _tune(trainables: list[TrainableConfig], placement: Placement, ray_storage: str, folder: SweepFolder) -> set[str]:
    """Run the trials; the ids of those whose workers died more often than the fault budget allows."""
    names = {config.model_dump_json(): config.job.trial.trial_id for config in trainables}
    stopper = PauseStopper(folder, trainables[0].job.command_number)
    trainable, restarts = TUNE_TRAINABLES[trainables[0].resources.executor], trainables[0].tune_restarts
    tuner = tune.Tuner(
        tune.with_resources(trainable, placement.tune_resources),
        param_space={"trainable": tune.grid_search(list(names))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=placement.concurrent_trials,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: names[trial.config["trainable"]],
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=ray_storage,
            failure_config=tune.FailureConfig(max_failures=restarts),
            stop=stopper,
            callbacks=[stopper, TuneFailureCallback()],
            verbose=0,
        ),
    )
    with contextlib.redirect_stdout(io.StringIO()):  # even verbose=0 prints boxes; dmray shows the progress itself
        results = tuner.fit()
    return {names[result.config["trainable"]] for result in results if result.error is not None}


@contextlib.contextmanager
def _connected(address: str | None, plan: Plan) -> Iterator[Machines]:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    if ray.is_initialized():  # by the caller
        yield _machines()
        return
    try:
        machines = _join(address) if address else _start(plan)
    except (OSError, RuntimeError, ValueError) as cause:
        raise ClusterError(f"--address {address or 'local'}: no Ray cluster: {str(cause).splitlines()[0]}") from cause
    try:
        yield machines
    finally:
        ray.shutdown()


def _join(address: str) -> Machines:
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in host:  # Ray itself would try for minutes
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    ours = {name: value for name, value in os.environ.items() if name.startswith("DMRAY_")}  # mirrors, folders
    ray.init(
        address=address,
        namespace=NAMESPACE,
        runtime_env={"env_vars": ours},
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return _machines()


def _machines() -> Machines:
    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Machines(
        total.get("CPU", 0.0),
        total.get("GPU", 0.0),
        total.get(DRIVER_RESOURCE, 0.0),
        tuple((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes),
    )


def machines_at(address: str, plan: Plan) -> Machines:
    """What `plan` would find at `address`: the cluster is asked and left again.

    Raises:
        ClusterError: no cluster answers.
    """
    with _connected(address, plan) as machines:
        return machines


def _start(plan: Plan) -> Machines:
    import torch

    machines = machines_for_one_node(plan.sweep.resources, os.cpu_count() or 1, torch.cuda.device_count())
    ray.init(
        "local",
        namespace=NAMESPACE,
        num_cpus=int(machines.cpus),
        num_gpus=int(machines.gpus),
        resources={DRIVER_RESOURCE: machines.drivers},
        include_dashboard=True,  # Ray Train frees the GPUs of a trial that died through the dashboard's state API
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return machines
