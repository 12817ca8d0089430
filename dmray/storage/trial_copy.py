"""A trial's working folder before an attempt: the store's state, unless what is here goes on from it.

What tells is the ledger. It only grows, and its lines carry times, so of two copies one begins with the other unless
two machines have written since they were last the same.
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
    """Make `trial` in the working folder what the next attempt has to go on from.

    A folder that goes on from the store's is kept. One that has gone another way is set aside, and said so: the
    store's has been seen by others. The caller holds the folder.

    Raises:
        StorageError, StoreUnavailableError: as their names say.
    """
    done = store.read(object_name(folder, trial.done))
    theirs = store.read(object_name(folder, trial.ledger))
    if theirs is None:
        return
    mine = _whole_lines(trial)
    if mine.startswith(theirs) and (done is None or trial.done.exists()):
        return
    if mine and not theirs.startswith(mine):
        _set_aside(trial)
    elif mine:
        _log.info("%s: another machine went on from here; taking up what is in the store", trial.path.name)
    clear_trial(trial)
    for path in (trial.log, trial.best_checkpoint, trial.final_checkpoint, trial.last_checkpoint):
        if (content := store.read(object_name(folder, path))) is not None:
            write_atomic(path, content)
    write_atomic(trial.ledger, theirs)
    if done is not None:
        write_atomic(trial.done, done)


def clear_trial(trial: TrialFolder) -> None:
    """Remove a trial's files from the working folder. The caller holds the folder."""
    for path in trial.path.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != trial.lock:
            path.unlink()


def _whole_lines(trial: TrialFolder) -> bytes:
    if not trial.ledger.exists():
        return b""
    return Ledger(trial.ledger).path.read_bytes()  # the writing end drops a torn line


def _set_aside(trial: TrialFolder) -> None:
    records = read_ledger(trial.ledger)
    step = max((getattr(record, "step", 0) for record in records), default=0)
    attempts = sum(isinstance(record, AttemptStarted) for record in records)
    aside = trial.path.with_name(f"{trial.path.name}.aside-{datetime.now():%Y%m%d-%H%M%S-%f}")
    aside.mkdir()
    for path in trial.path.iterdir():
        if path != trial.lock:
            path.rename(aside / path.name)
    _log.warning(
        "%s: %d attempts up to step %d here never reached the store, and another machine has gone on without them; "
        "they are set aside in %s",
        trial.path.name,
        attempts,
        step,
        aside,
    )
