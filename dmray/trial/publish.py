"""A trial in an object store: downloaded before it runs, uploaded while it runs. With a folder as storage: nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from dmray.coordination.commands import TrialPaused
from dmray.coordination.store_commands import StoreCommands
from dmray.errors import StorageError
from dmray.files import write_atomic
from dmray.periodic_thread import PeriodicThread
from dmray.records import TrialFolder
from dmray.records.phase import PhaseWriter
from dmray.sources.recordings import recorded_file
from dmray.specs import Generation
from dmray.storage import Publisher, Store, clear_trial, download_trial, is_url, object_name, open_store
from dmray.storage.outages import RETRY_FOR_S, retry_while_unavailable, skip_during_outage
from dmray.tasks import recording_path, task_of
from dmray.trial.job import TrialJob

Report = Callable[[int, float | None], None]
_log = logging.getLogger(__name__)
_COMMANDS_EVERY_S = 5.0
_PATIENCE_AFTER_FAILURE_S = 20.0


@contextlib.contextmanager
def sync_trial(job: TrialJob, report: Report, phases: PhaseWriter) -> Iterator[Report]:
    """Download the trial, upload it while the block runs, and return when all of it is in the store.

    Yields the function to report progress to. The caller holds the trial's lock.

    Raises:
        StorageError: another worker has continued the trial.
        StoreUnavailableError: the store does not answer.
    """
    if not is_url(job.storage):
        yield report
        return
    store = open_store(job.storage, job.sweep_name)
    phases.enter("fetching_trial")
    retry_while_unavailable(lambda: download_trial(store, job.sweep_folder, job.folder))
    publisher = Publisher(store, job.sweep_folder, job.folder)

    def wake_and_report(step: int, score: float | None) -> None:
        publisher.wake()
        report(step, score)

    try:
        commands = StoreCommands(store)
        with PeriodicThread(skip_during_outage(lambda: commands.download(job.sweep_folder)), _COMMANDS_EVERY_S):
            yield wake_and_report
    except TrialPaused:
        publisher.close(RETRY_FOR_S)
        raise
    except Exception:
        try:
            publisher.close(_PATIENCE_AFTER_FAILURE_S)
        except StorageError as problem:  # the block's own error is raised
            _log.warning("%s", problem)
        raise
    except BaseException:  # the process ends: the next attempt continues from what is in the store
        publisher.stop()
        raise
    publisher.close(RETRY_FOR_S)
    clear_trial(job.folder)


@contextlib.contextmanager
def fetch_other_trial(job: TrialJob, trial: TrialFolder) -> Iterator[None]:
    """Have the files of another trial of the sweep on this machine while the block runs. With a folder: nothing to do.

    The caller holds the other trial's lock.

    Raises:
        StoreUnavailableError: the store does not answer.
    """
    if not is_url(job.storage):
        yield
        return
    store = open_store(job.storage, job.sweep_name)

    def fetch() -> None:
        download_trial(store, job.sweep_folder, trial)
        for path in (trial.episode_table(0), trial.numbered_checkpoint(0)):
            for name in store.list(object_name(job.sweep_folder, path).rpartition("/")[0]):
                target = path.with_name(name.rpartition("/")[2])
                content = None if target.exists() else store.read(name)
                if content is not None:
                    write_atomic(target, content)

    retry_while_unavailable(fetch)
    yield
    clear_trial(trial)


def share_recording(job: TrialJob) -> None:
    """Give all machines the same recording of the trial's data set: the first one, as last bits differ by machine.

    Raises:
        EngineError: it cannot be recorded here.
        StoreUnavailableError: the store does not answer.
    """
    generation = job.trial.dataset.generate
    if is_url(job.storage) and generation is not None:
        retry_while_unavailable(lambda: _share(job, generation, open_store(job.storage, "datasets")))


def _share(job: TrialJob, generation: Generation, datasets: Store) -> None:
    task = task_of(job.trial.dataset)
    path = recording_path(generation, task, job.sweep_folder.datasets)
    theirs = datasets.read(path.name)
    if theirs is None:
        recorded_file(generation, task, job.sweep_folder.datasets)
        theirs = None if datasets.create(path.name, path.read_bytes()) else datasets.read(path.name)
    if theirs is not None and not (path.exists() and path.read_bytes() == theirs):
        write_atomic(path, theirs)
