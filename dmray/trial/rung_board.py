"""The board on which the trials of a sweep post their scores at rungs: small files in the sweep's folder or store.

rungs/<competitors>/<step>/<trial_id>.json      written by that trial alone, always with the same content
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from pydantic import ValidationError

from dmray.errors import StorageError
from dmray.files import write_atomic
from dmray.records.disk import read_file
from dmray.specs import Spec
from dmray.storage import is_url, object_name, open_store
from dmray.trial.job import TrialJob

_LONGEST = 4096
_log = logging.getLogger(__name__)


class _Posted(Spec):
    score: float


class RungBoard:
    """The board of the sweep that a job belongs to. `competitors` is the id of the trials that compete.

    Raises (both methods):
        StoreUnavailableError: the object store does not answer; trying again may help.
        StorageError, OSError: the board cannot be written or read.
    """

    def __init__(self, job: TrialJob) -> None:
        self._folder = job.sweep_folder
        self._store = open_store(job.storage, job.sweep_name) if is_url(job.storage) else None

    def post(self, competitors: str, step: int, trial_id: str, score: float) -> None:
        """Post a trial's score. Posting it again changes nothing."""
        path, content = self._folder.rung_score(competitors, step, trial_id), json.dumps({"score": score}).encode()
        if self._store is None:
            write_atomic(path, content)
        else:
            self._store.write(object_name(self._folder, path), content)

    def scores(self, competitors: str, step: int) -> dict[str, float]:
        """The scores posted so far, by trial id. One that is damaged is left out, with a warning."""
        rung = self._folder.rung(competitors, step)
        found: dict[str, float] = {}
        for trial_id, content in self._contents(rung).items():
            try:
                found[trial_id] = _Posted.model_validate_json(content).score
            except ValidationError as invalid:
                _warn_left_out(f"{rung / trial_id}.json: not a score ({invalid.errors()[0]['msg']})")
        return found

    def _contents(self, rung: Path) -> dict[str, bytes]:
        if self._store is None:
            return _contents_of(rung)
        names = sorted(self._store.list(object_name(self._folder, rung)))
        found = {Path(name).stem: self._store.read(name) for name in names}
        return {trial_id: content for trial_id, content in found.items() if content is not None}


def _contents_of(rung: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for path in sorted(rung.glob("*.json")):
        try:
            contents[path.stem] = read_file(path, _LONGEST)
        except FileNotFoundError:
            continue
        except StorageError as unreadable:
            _warn_left_out(str(unreadable))
    return contents


def _warn_left_out(problem: str) -> None:
    _log.warning("%s; early stopping decides without this trial's score", problem)
