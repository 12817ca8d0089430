"""The driver of a sweep whose storage is an object store. With a folder as storage it only takes the folder's lock."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator

from dmray.coordination.store_commands import StoreCommands
from dmray.coordination.sweep_lock import folder_lock, store_lock
from dmray.periodic_thread import PeriodicThread
from dmray.planning.plan import Plan
from dmray.records import SweepFolder
from dmray.specs import NO_MLFLOW, SweepSpec
from dmray.storage import SweepCopy, is_url, store_of
from dmray.storage.outages import SkipDuringOutage, retry_while_unavailable

Refresh = Callable[[], None]  # makes a driver's folder what the storage is
_PULL_EVERY_S = 10.0
_COMMANDS_EVERY_S = 5.0


@contextlib.contextmanager
def sweep_lock(plan: Plan, folder: SweepFolder) -> Iterator[Refresh]:
    """Hold the sweep as its only driver.

    `folder` is up to date at the start; folder and store are, each with what the other has, when the yielded function
    returns.

    Raises:
        StorageError: another driver holds it, or the store cannot be written.
        StoreUnavailableError: the store does not answer.
    """
    if not is_url(plan.sweep.storage):
        with folder_lock(folder):
            yield lambda: None
        return
    store = store_of(plan.sweep.storage, folder.name)
    store.require_writable()
    with folder_lock(folder), store_lock(store):
        copy = SweepCopy(store, folder, with_weights=plan.sweep.tracking.mlflow_uri != NO_MLFLOW)
        commands = StoreCommands(store)

        def refresh() -> None:
            commands.exchange(folder)
            copy.pull()
            copy.push()

        copy.open()
        commands.exchange(folder)
        exchanging = SkipDuringOutage(lambda: commands.exchange(folder))
        try:  # a pull of much must not keep orders waiting
            with PeriodicThread(exchanging, _COMMANDS_EVERY_S), PeriodicThread(copy, _PULL_EVERY_S):
                yield lambda: retry_while_unavailable(refresh)
        finally:
            exchanging.advance()
            copy.advance()
        retry_while_unavailable(copy.push)


def ray_storage_path(sweep: SweepSpec, folder: SweepFolder) -> str:
    """Where Ray keeps its own files of a sweep: seen by all machines."""
    return f"{sweep.storage.rstrip('/')}/{folder.name}/ray" if is_url(sweep.storage) else str(folder.ray_attempts)


def clear_ray_files(sweep: SweepSpec, folder: SweepFolder) -> None:
    """Remove Ray's own files of all attempts; its caller is the only driver."""
    if is_url(sweep.storage):
        store_of(sweep.storage, folder.name).remove_all("ray")
    else:
        shutil.rmtree(folder.ray_attempts, ignore_errors=True)
