"""Prepare a trial's working folder for an attempt: with the store's files, unless the local ones are newer.

The ledgers decide. A ledger only grows and its lines carry times, so of two copies the older one is a prefix of the
newer one, unless two machines have both written to the trial.
"""

from __future__ import annotations

import logging
import shutil
from datetime import datetime

from dmray.files import write_atomic
from dmray.records import AttemptStarted, TrialFolder, read_ledger
from dmray.records.folders import SweepFolder
from dmray.records.ledger import Ledger
from dmray.storage.place import object_name
from dmray.storage.store import Store

_log = logging.getLogger(__name__)


def download_trial(store: Store, folder: SweepFolder, trial: TrialFolder) -> None:
    """Bring `trial`, in the working folder, to the state that the next attempt continues from.

    A local ledger that extends the store's is kept. If both have lines that the other lacks, the store's files are
    taken, since others have seen them, and the local ones are moved to `<trial>.unpublished-<time>` with a warning.
    The caller holds the trial's lock.

    Raises:
        StoreUnavailableError: the store does not answer.
        StorageError: the store refuses access.
    """
    stored = store.read(object_name(folder, trial.ledger))
    if stored is None:
        return
    local = _whole_lines(trial)
    if local.startswith(stored) and (trial.done.exists() or store.version(object_name(folder, trial.done)) is None):
        return
    # Read in the opposite order of a publisher's, so that each file has those that it relies on, whoever uploads.
    order = (trial.done, trial.last_checkpoint, trial.ledger, trial.log, trial.final_checkpoint, trial.best_checkpoint)
    contents = {path: store.read(object_name(folder, path)) for path in order}
    stored = contents[trial.ledger] or stored
    if local and not stored.startswith(local):
        _move_unpublished(trial)
    elif local:
        _log.info("%s: another machine has continued this trial; its files are fetched from the store", trial.path.name)
    clear_trial(trial)
    # Without the ledger, the next attempt fetches all again.
    for path in (*(each for each in reversed(order[1:]) if each != trial.ledger), trial.ledger, trial.done):
        if (content := contents[path]) is not None:
            write_atomic(path, content)


def clear_trial(trial: TrialFolder) -> None:
    """Remove a trial's files from the working folder. The caller holds the trial's lock."""
    for path in trial.path.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != trial.lock:
            path.unlink()


def _whole_lines(trial: TrialFolder) -> bytes:
    if not trial.ledger.exists():
        return b""
    return Ledger(trial.ledger).path.read_bytes()  # opening it as a writer drops an incomplete last line


def _move_unpublished(trial: TrialFolder) -> None:
    records = read_ledger(trial.ledger)
    step = max((getattr(record, "step", 0) for record in records), default=0)
    attempts = sum(isinstance(record, AttemptStarted) for record in records)
    unpublished = trial.path.with_name(f"{trial.path.name}.unpublished-{datetime.now():%Y%m%d-%H%M%S-%f}")
    unpublished.mkdir()
    for path in trial.path.iterdir():
        if path != trial.lock:
            path.rename(unpublished / path.name)
    _log.warning(
        "%s: the files of %d local attempts (up to step %d) were never published, and another machine has continued "
        "the trial without them; they are moved to %s",
        trial.path.name,
        attempts,
        step,
        unpublished,
    )
