"""Runs the unfinished trials of a plan on Ray: Tune over the grid, a Train worker a slot, one evaluation pool."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime

import ray
from ray import tune

from dmray.driver.session import driver_phases
from dmray.driver.store_session import Refresh, clear_ray_files, ray_storage_path
from dmray.errors import PluginError, StorageError
from dmray.methods import METHODS
from dmray.on_ray.callbacks import PauseStopper, TuneFailureCallback
from dmray.on_ray.cluster import connected
from dmray.on_ray.evaluation_pool import EvaluationPool
from dmray.on_ray.liveness import RayWatch
from dmray.on_ray.placement import Machines, Placement, overload, place_trials
from dmray.on_ray.trainable import TUNE_TRAINABLES
from dmray.on_ray.trainable_config import TrainableConfig
from dmray.planning.packing import packing_lines, packs_together
from dmray.planning.plan import Plan
from dmray.progress.extensions import find_extensions
from dmray.records import AttemptFailed, SweepFolder, TrialFolder, TrialStopped, read_ledger
from dmray.records.phase import PhaseWriter
from dmray.specs import TrialSpec
from dmray.trial.job import TrialJob
from dmray.trial.watchdog import note_hang

_log = logging.getLogger(__name__)


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
        extended = find_extensions(plan, folder)
        ordered = packs_together(todo, plan.sweep.resources.trials_per_pack)
        jobs = [TrialJob.of(trial, plan.sweep, folder, extended.get(trial.trial_id)) for trial in ordered]
        own_ray = self._address in (None, "local") and not ray.is_initialized()
        watch, phases = RayWatch(folder, jobs, plan.sweep.faults, own_ray), driver_phases(folder)
        with watch.ending_in_time(), _in_phases(connected(self._address, plan), phases) as machines, watch.watching():
            placement = place_trials(plan.sweep.resources, machines, len(todo))
            _log.info(
                "%d trials to run, at most %d at a time, evaluation actors: %d, CPUs: %g, GPUs: %g",
                len(todo),
                placement.concurrent_trials,
                plan.sweep.resources.evaluation_actors,
                machines.usable_cpus,
                machines.gpus,
            )
            if too_much := overload(plan.sweep.resources, placement.concurrent_trials, machines):
                _log.warning("%s", too_much)
            for line in packing_lines(todo, plan.sweep.resources.trials_per_pack):
                _log.info("%s", line.strip())
            phases.enter("starting_actors", f"{plan.sweep.resources.evaluation_actors}")
            pool = EvaluationPool.start(plan.sweep.resources, attempt, faults=plan.sweep.faults)
            phases.enter("starting_trials")  # shown until the first trial says what it does
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


@contextlib.contextmanager
def _in_phases(ray: AbstractContextManager[Machines], phases: PhaseWriter) -> Iterator[Machines]:
    """`ray`, with its start and its end as phases."""
    with contextlib.ExitStack() as stack:
        phases.enter("starting_ray")
        stack.callback(phases.leave)
        machines = stack.enter_context(ray)
        phases.leave()
        stack.callback(phases.enter, "ending_ray")
        yield machines


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
        tune.with_resources(trainable, tune.PlacementGroupFactory(list(placement.bundles))),
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
