"""Begin a trial with the records and the state of one that had fewer training steps (`dmray.progress.extensions`).

The checkpoints and the tables of episodes are written first, the ledger last. A kill before that leaves files that the
next attempt replaces; after it, an ordinary trial that was paused. The shorter trial's files are read and stay as they
are.
"""

from __future__ import annotations

import logging
import shutil
import time

from dmray.errors import CheckpointError
from dmray.file_lock import file_lock
from dmray.files import make_folder, write_atomic
from dmray.records import (
    AttemptStarted,
    LedgerPrefix,
    LedgerRecord,
    TrainingExtended,
    TrialDone,
    TrialFolder,
    read_ledger,
)
from dmray.records.disk import writing
from dmray.records.ledger import begins_with, ledger_of
from dmray.trial.checkpoints import load_checkpoint, rewrite_checkpoint
from dmray.trial.job import TrialJob
from dmray.trial.publish import fetch_other_trial

_log = logging.getLogger(__name__)
_LOCK_TIMEOUT_S = 120.0


def begin_extended(job: TrialJob) -> bool:
    """Begin the job's trial with what the shorter trial `job.extends` has; whether that was done.

    Nothing is done if the trial has begun already, or if the shorter one cannot be continued, which is logged: then the
    trial starts at step 0. The caller holds the trial's lock.

    Raises:
        CheckpointError: the shorter trial's last checkpoint is damaged, or of another trial.
        StorageError: the shorter trial's ledger is damaged, or a worker still runs it.
        StoreUnavailableError: the object store does not answer.
    """
    own = read_ledger(job.folder.ledger)
    if job.extends is None or any(isinstance(record, AttemptStarted | TrainingExtended) for record in own):
        return False
    shorter = job.sweep_folder.trial(job.extends)
    busy = "another worker still runs this trial, which is to be continued with more steps: stop it first"
    with file_lock(shorter.lock, _LOCK_TIMEOUT_S, busy), fetch_other_trial(job, shorter):
        if (problem := _why_not(shorter)) is not None:
            _log.warning("%s: %s; it starts at step 0", job.trial.trial_id, problem)
            return False
        _begin(job, shorter, own)
    return True


def _why_not(shorter: TrialFolder) -> str | None:
    """Why no training can go on from the shorter trial, if it cannot."""
    if not shorter.last_checkpoint.exists():
        return f"{shorter.last_checkpoint} is missing, so {shorter.path.name} cannot be continued"
    content = load_checkpoint(shorter.last_checkpoint)
    if content["origin"]["trial_id"] != shorter.path.name or "ledger" not in content:
        raise CheckpointError(
            f"{shorter.last_checkpoint}: is not the last checkpoint of {shorter.path.name}; restore it, or remove it "
            "to train from step 0"
        )
    if not begins_with(shorter.ledger, LedgerPrefix(*content["ledger"])):
        return f"{shorter.last_checkpoint} and the ledger of {shorter.path.name} disagree, so it cannot be continued"
    return None


def _begin(job: TrialJob, shorter: TrialFolder, own: list[LedgerRecord]) -> None:
    trial, folder = job.trial, job.folder
    step = load_checkpoint(shorter.last_checkpoint)["trainer"]["step"]
    kept = [_of_longer(record, trial.trial_id) for record in read_ledger(shorter.ledger)]
    records = [record for record in kept if not isinstance(record, TrialDone)]
    extended = TrainingExtended(time_s=time.time(), trial_id=shorter.path.name, step=step)
    content, prefix = ledger_of([*records, *own, extended])
    numbered = {path: folder.last_checkpoint.parent / path.name for path in shorter.numbered_checkpoints().values()}
    for source, target in {shorter.best_checkpoint: folder.best_checkpoint, **numbered}.items():
        if source.exists():
            rewrite_checkpoint(source, target, trial)
    rewrite_checkpoint(shorter.last_checkpoint, folder.last_checkpoint, trial, ledger=tuple(prefix))
    with writing(folder.ledger):
        make_folder(folder.evaluations)
        for table in shorter.evaluations.glob("step_*.parquet"):
            shutil.copyfile(table, folder.evaluations / table.name)
        write_atomic(folder.ledger, content)
    _log.info("%s goes on after step %d of %s", trial.trial_id, step, shorter.path.name)


def _of_longer(record: LedgerRecord, trial_id: str) -> LedgerRecord:
    if isinstance(record, AttemptStarted):
        return record.model_copy(update={"trial_id": trial_id, "trained_as": record.trained_as or record.trial_id})
    return record
