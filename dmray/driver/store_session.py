"""Keep the driver's folder and an object store in sync. If the storage is a folder, only take the sweep's lock."""

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
from dmray.storage import SweepCopy, is_url, open_store
from dmray.storage.outages import retry_while_unavailable, skip_during_outage

Refresh = Callable[[], None]  # syncs the driver's folder and the store now
_PULL_EVERY_S = 10.0
_COMMANDS_EVERY_S = 5.0


@contextlib.contextmanager
def sweep_lock(plan: Plan, folder: SweepFolder) -> Iterator[Refresh]:
    """Hold the sweep's lock while the block runs, and sync `folder` with the store in the background.

    `folder` is up to date when the block begins, and again whenever the yielded function was called.

    Raises:
        StorageError: another driver holds the lock, or the store cannot be written.
        StoreUnavailableError: the store does not answer.
    """
    if not is_url(plan.sweep.storage):
        with folder_lock(folder):
            yield lambda: None
        return
    store = open_store(plan.sweep.storage, folder.name)
    store.require_writable()
    with folder_lock(folder), store_lock(store):
        copy = SweepCopy(store, folder, with_weights=plan.sweep.tracking.mlflow_uri != NO_MLFLOW)
        commands = StoreCommands(store)

        def refresh() -> None:
            commands.sync(folder)
            copy.fetch_reevaluations()  # others may evaluate finished trials while the driver runs
            copy.pull()
            copy.push()

        copy.download()
        commands.sync(folder)
        syncing = skip_during_outage(lambda: commands.sync(folder))
        try:  # two threads, so that a long pull does not delay a command
            with (
                PeriodicThread(syncing, _COMMANDS_EVERY_S, name="dmray-commands-sync"),
                PeriodicThread(copy.advance, _PULL_EVERY_S, name="dmray-store-copy"),
            ):
                yield lambda: retry_while_unavailable(refresh)
        finally:
            syncing()
            copy.advance()
        retry_while_unavailable(copy.push)


def ray_storage_path(sweep: SweepSpec, folder: SweepFolder) -> str:
    """The `storage_path` for Ray's own files of a sweep; all machines reach it."""
    return f"{sweep.storage.rstrip('/')}/{folder.name}/ray" if is_url(sweep.storage) else str(folder.ray_attempts)


def clear_ray_files(sweep: SweepSpec, folder: SweepFolder) -> None:
    """Remove Ray's own files of all attempts. The caller holds the sweep's lock."""
    if is_url(sweep.storage):
        open_store(sweep.storage, folder.name).remove_all("ray")
    else:
        shutil.rmtree(folder.ray_attempts, ignore_errors=True)
