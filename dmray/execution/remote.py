"""A sweep whose storage is an object store: what its driver and its workers do beside their usual work on folders.

With a folder as storage all of this does nothing.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator

from dmray.errors import StorageError, StoreUnavailableError
from dmray.execution.control import Left
from dmray.execution.job import TrialJob
from dmray.execution.lease import lease, store_lease
from dmray.execution.plan import Plan
from dmray.execution.store_orders import StoreOrders
from dmray.sources.recordings import recorded_file, recording_path
from dmray.specs import NO_MLFLOW, Generation, SweepSpec
from dmray.storage import Publisher, Store, SweepCopy, bring_trial, clear_trial, is_url, store_of
from dmray.tasks import task_of
from dmray.tracking import MirrorThread, SweepFolder, write_atomic

Refresh = Callable[[], None]  # makes a driver's folder what the storage is
Report = Callable[[int, float | None], None]
_log = logging.getLogger(__name__)
_PULL_EVERY_S = 10.0
_ORDERS_EVERY_S = 5.0
_AGAIN_AFTER_S = 2.0
_PATIENCE_S = 300.0  # at a trial's end: longer outages are rare, and the next attempt starts from what is there
_PATIENCE_AFTER_FAILURE_S = 20.0


class _Repeating:
    """Something that is done beside the work, and done again the next time if the store fails: others tell of that."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def advance(self) -> bool:
        try:
            self._act()
        except StorageError:
            return False
        return True


def bring_order(job: TrialJob) -> None:
    """Make the order in the worker's folder the one that stands in the store."""
    if is_url(job.storage):
        store = store_of(job.storage, job.sweep_name)
        _patiently(lambda: StoreOrders(store).take(job.sweep_folder))


@contextlib.contextmanager
def held(plan: Plan, folder: SweepFolder) -> Iterator[Refresh]:
    """Hold the sweep as its only driver.

    `folder` is up to date at the start; folder and store are, each with what the other has, when the yielded function
    returns.

    Raises:
        StorageError: another driver holds it, or the store cannot be written.
        StoreUnavailableError: the store does not answer.
    """
    if not is_url(plan.sweep.storage):
        with lease(folder):
            yield lambda: None
        return
    store = store_of(plan.sweep.storage, folder.name)
    store.require_writable()
    with lease(folder), store_lease(store):
        copy = SweepCopy(store, folder, with_weights=plan.sweep.tracking.mlflow_uri != NO_MLFLOW)
        orders = StoreOrders(store)

        def refresh() -> None:
            orders.exchange(folder)
            copy.pull()
            copy.push()

        copy.open()
        orders.exchange(folder)
        exchanging = _Repeating(lambda: orders.exchange(folder))
        try:  # a pull of much must not keep orders waiting
            with MirrorThread(exchanging, _ORDERS_EVERY_S), MirrorThread(copy, _PULL_EVERY_S):
                yield lambda: _patiently(refresh)
        finally:
            exchanging.advance()
            copy.advance()
        _patiently(copy.push)


@contextlib.contextmanager
def published(job: TrialJob, report: Report) -> Iterator[Report]:
    """Bring the trial here, publish it while the block runs, and return when all of it is in the store.

    Yields what to report progress to. The caller holds the trial's folder.

    Raises:
        StorageError: another worker has taken the trial up.
        StoreUnavailableError: the store does not answer.
    """
    if not is_url(job.storage):
        yield report
        return
    store = store_of(job.storage, job.sweep_name)
    _patiently(lambda: bring_trial(store, job.sweep_folder, job.folder))
    publisher = Publisher(store, job.sweep_folder, job.folder)

    def wake_and_report(step: int, score: float | None) -> None:
        publisher.wake()
        report(step, score)

    try:
        orders = StoreOrders(store)
        with MirrorThread(_Repeating(lambda: orders.take(job.sweep_folder)), _ORDERS_EVERY_S):
            yield wake_and_report
    except Left:
        publisher.close(_PATIENCE_S)
        raise
    except Exception:
        try:
            publisher.close(_PATIENCE_AFTER_FAILURE_S)
        except StorageError as problem:  # the block's own error is the one to raise
            _log.warning("%s", problem)
        raise
    except BaseException:  # stopped: what is here goes on from what is there
        publisher.stop()
        raise
    publisher.close(_PATIENCE_S)
    clear_trial(job.folder)


def share_recording(job: TrialJob) -> None:
    """One recording of the trial's data set for all machines, whose last bits might differ: the first one's.

    Raises:
        EngineError: it cannot be recorded here.
        StoreUnavailableError: the store does not answer.
    """
    generation = job.trial.dataset.generate
    if is_url(job.storage) and generation is not None:
        _patiently(lambda: _share(job, generation, store_of(job.storage, "datasets")))


def ray_place(sweep: SweepSpec, folder: SweepFolder) -> str:
    """Where Ray keeps its own files of a sweep: seen by all machines."""
    return f"{sweep.storage.rstrip('/')}/{folder.name}/ray" if is_url(sweep.storage) else str(folder.ray_attempts)


def clear_ray_files(sweep: SweepSpec, folder: SweepFolder) -> None:
    """Remove Ray's own files of all attempts; its caller is the only driver."""
    if is_url(sweep.storage):
        store_of(sweep.storage, folder.name).remove_all("ray")
    else:
        shutil.rmtree(folder.ray_attempts, ignore_errors=True)


def _share(job: TrialJob, generation: Generation, datasets: Store) -> None:
    task = task_of(job.trial.dataset)
    path = recording_path(generation, task, job.sweep_folder.datasets)
    theirs = datasets.read(path.name)
    if theirs is None:
        recorded_file(generation, task, job.sweep_folder.datasets)
        theirs = None if datasets.create(path.name, path.read_bytes()) else datasets.read(path.name)
    if theirs is not None and not (path.exists() and path.read_bytes() == theirs):
        write_atomic(path, theirs)


def _patiently(call: Callable[[], object]) -> None:
    """Try again while the store does not answer, for `_PATIENCE_S`."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            call()
            return
        except StoreUnavailableError as problem:
            if time.monotonic() > deadline:
                raise
            _log.warning("%s; trying again", problem)
            time.sleep(_AGAIN_AFTER_S)
