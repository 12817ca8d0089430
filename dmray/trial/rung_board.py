"""Where the trials of a sweep post their scores at rungs, for each other: small files in the sweep's folder or store.

rungs/<group>/<step>/<trial_id>.json      written by that trial alone, and always the same
"""

from __future__ import annotations

import json
from pathlib import Path

from dmray.files import write_atomic
from dmray.storage import is_url, object_name, open_store
from dmray.trial.job import TrialJob


class RungBoard:
    """The board of `job`'s sweep.

    Raises (both methods):
        StoreUnavailableError: an object store does not answer; another try may do better.
        StorageError, OSError: it cannot be written, or read.
    """

    def __init__(self, job: TrialJob) -> None:
        self._folder = job.sweep_folder
        self._store = open_store(job.storage, job.sweep_name) if is_url(job.storage) else None

    def post(self, group: str, step: int, trial_id: str, score: float) -> None:
        """Put a trial's score up; again changes nothing."""
        path, content = self._folder.rung_score(group, step, trial_id), json.dumps({"score": score}).encode()
        if self._store is None:
            write_atomic(path, content)
        else:
            self._store.write(object_name(self._folder, path), content)

    def scores(self, group: str, step: int) -> dict[str, float]:
        """What has been posted there, by trial id."""
        contents = self._contents(self._folder.rung(group, step))
        return {trial_id: float(json.loads(content)["score"]) for trial_id, content in contents.items()}

    def _contents(self, rung: Path) -> dict[str, bytes]:
        if self._store is None:
            return {path.stem: path.read_bytes() for path in sorted(rung.glob("*.json"))}
        names = sorted(self._store.list(object_name(self._folder, rung)))
        found = {Path(name).stem: self._store.read(name) for name in names}
        return {trial_id: content for trial_id, content in found.items() if content is not None}
