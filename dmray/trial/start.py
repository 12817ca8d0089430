"""Where an attempt starts: at the last checkpoint, if the trial's files agree with each other, else at step 0.

The order on the disk is: an evaluation's record, then best.pt with its weights; the ledger, then the checkpoint that
relies on it. So after a kill or a power cut the ledger has at least what last.pt relies on and the step of best.pt, and
weights of a best score that best.pt lacks come by again, from the checkpoint or by training. Files that disagree
otherwise were damaged or mixed. Then training from step 0 is the one way by which no evaluation is missing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from dmray.errors import CheckpointError
from dmray.files import flush
from dmray.policies import SequencePolicy
from dmray.records import (
    EvaluationDone,
    Ledger,
    LedgerPrefix,
    LedgerRecord,
    StartedOver,
    TrialFolder,
    counting,
    distinct,
    read_done_marker,
    read_ledger,
)
from dmray.records.ledger import begins_with
from dmray.trial.checkpoints import Origin, load_checkpoint, resume_checkpoint

_log = logging.getLogger(__name__)


class Start(NamedTuple):
    """`content`: of the checkpoint to continue from; None: from step 0.

    `lost_best`: the step of the best score, if its weights must be saved again when they come by.
    `unrecorded_best`: the step of best.pt, if its evaluation will be made again (an object store gets weights first).
    `over`: why all results must be made again; None where those of the ledger count.
    """

    content: dict[str, Any] | None = None
    lost_best: int | None = None
    unrecorded_best: int | None = None
    over: str | None = None


def find_start(folder: TrialFolder, origin: Origin, policy: SequencePolicy, device: str) -> Start:
    """Compare the last checkpoint, the best one and the ledger. The caller holds the trial's lock.

    Raises:
        CheckpointError: the last checkpoint is damaged, or of another spec or data set.
        StorageError: the ledger is damaged.
    """
    _set_aside_wrong_marker(folder)
    content = resume_checkpoint(folder.last_checkpoint, origin, device, policy)
    records = read_ledger(folder.ledger)
    if content is not None:
        prefix = LedgerPrefix(*content["ledger"])
        if prefix.num_records < len(records) - len(counting(records)):  # a kill while the trial started over
            _set_aside(folder)
            content = None
        elif not begins_with(folder.ledger, prefix):
            return Start(over=_what_is_missing(content["trainer"]["step"], prefix, records))
    scores = _full_scores(counting(records))
    best, stored = _best_step(scores), _step_of_best_checkpoint(folder, origin, scores)
    if best is None or best == stored:
        return Start(content)
    if _comes_again(content, best):
        return Start(content, lost_best=best)
    if stored is not None and stored > best and _comes_again(content, stored):
        return Start(content, unrecorded_best=stored)
    return Start(over=f"best.pt has not the weights of the best evaluation (step {best:,}), which are nowhere else")


def start_over(folder: TrialFolder, ledger: Ledger, attempt: int, reason: str) -> None:
    """Let no record count so far, and put the checkpoints aside."""
    _log.warning("%s: %s; the trial starts over at step 0, with the same results", folder.path.name, reason)
    ledger.append(StartedOver(time_s=time.time(), attempt=attempt, reason=reason))
    ledger.sync()
    _set_aside(folder)


def _comes_again(content: dict[str, Any] | None, step: int) -> bool:
    """Whether an attempt that continues from `content` has the weights after `step` once more."""
    return content is None or step in content["open_evaluations"] or step > content["trainer"]["step"]


def _what_is_missing(step: int, prefix: LedgerPrefix, records: list[LedgerRecord]) -> str:
    if len(records) < prefix.num_records:
        missing = f"the ledger lacks {prefix.num_records - len(records)} of the {prefix.num_records} records"
    else:
        missing = f"the ledger's first {prefix.num_records} records are not those"
    return f"{missing} that last.pt at step {step:,} relies on (a power cut, or files of different times)"


def _full_scores(records: Iterable[LedgerRecord]) -> dict[int, float]:
    """Of evaluations over all episodes, by step."""
    return {
        each.step: each.first_target.normalized_mean
        for each in distinct(records)
        if isinstance(each, EvaluationDone) and not each.quick
    }


def _best_step(scores: Mapping[int, float]) -> int | None:
    return max(scores, key=lambda step: (scores[step], -step), default=None)


def _step_of_best_checkpoint(folder: TrialFolder, origin: Origin, scores: Mapping[int, float]) -> int | None:
    """None where best.pt is missing, damaged, or not what this trial wrote for that step."""
    path, ours = folder.best_checkpoint, origin.as_dict()
    try:
        content = load_checkpoint(path)
    except CheckpointError as problem:
        if path.exists():
            _log.warning("%s", problem)
        return None
    theirs, score = content["origin"], content.get("score")
    step: int | None = content.get("step")
    for key in ("trial_id", "dataset_fingerprint"):
        if theirs[key] != ours[key]:
            _log.warning("%s: is of another trial or other data: %s %s, not %s", path, key, theirs[key], ours[key])
            return None
    if step is not None and step in scores and score != scores[step]:
        _log.warning("%s: has score %s of step %d, but the ledger has %s", path, score, step, scores[step])
        return None
    return step


def _set_aside_wrong_marker(folder: TrialFolder) -> None:
    """A marker that stands although the ledger has no end (the caller has read it) is not of this ledger."""
    if folder.done.exists() or folder.done.is_symlink():
        marker = read_done_marker(folder)
        what = f"says that the trial {marker.status} at step {marker.step:,}" if marker else "is damaged"
        aside = folder.done.with_name(f"{folder.done.name}.aside-{_now()}")
        _log.warning("%s %s, but its ledger has no end; moved to %s", folder.done, what, aside.name)
        folder.done.rename(aside)


def _set_aside(folder: TrialFolder) -> None:
    checkpoints = folder.last_checkpoint.parent
    if checkpoints.exists():
        checkpoints.rename(checkpoints.with_name(f"{checkpoints.name}.aside-{_now()}"))
        flush(folder.path)


def _now() -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S-%f}"
