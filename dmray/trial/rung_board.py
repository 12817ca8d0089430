"""The board on which the trials of a sweep post their scores at rungs: small files in the sweep's folder or store.

rungs/<competitors>/<step>/<trial_id>.json      written by that trial alone, always with the same content
"""

from __future__ import annotations

import json
from pathlib import Path

from dmray.files import write_atomic
from dmray.storage import is_url, object_name, open_store
from dmray.trial.job import TrialJob


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
        """The scores posted so far, by trial id."""
        contents = self._contents(self._folder.rung(competitors, step))
        return {trial_id: float(json.loads(content)["score"]) for trial_id, content in contents.items()}

    def _contents(self, rung: Path) -> dict[str, bytes]:
        if self._store is None:
            return {path.stem: path.read_bytes() for path in sorted(rung.glob("*.json"))}
        names = sorted(self._store.list(object_name(self._folder, rung)))
        found = {Path(name).stem: self._store.read(name) for name in names}
        return {trial_id: content for trial_id, content in found.items() if content is not None}
