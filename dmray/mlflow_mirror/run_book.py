"""The runs of one sweep in a store, found by one search and made where they are missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dmray.mlflow_mirror.labels import KEY, SWEEP_ID
from dmray.mlflow_mirror.store import RunStore, StoredRun


@dataclass(frozen=True)
class RunWanted:
    """A run that should exist: `tags[KEY]` is what it is found by."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    start_s: float


class RunBook:
    """What one search found. After any error it is dropped and made anew: an answer may have been lost."""

    def __init__(self, store: RunStore, sweep_id: str) -> None:
        self._store = store
        self._found: dict[str, StoredRun] = {}
        for run in store.find_runs(SWEEP_ID, sweep_id):
            self._found.setdefault(run.tags[KEY], run)

    def find(self, key: str) -> StoredRun | None:
        """The run as the search found it, or as it was made since."""
        return self._found.get(key)

    def ensure(self, wanted: RunWanted) -> StoredRun:
        """The run, with its parameters; made if it was not there."""
        key = wanted.tags[KEY]
        if key not in self._found:
            run_id = self._store.create_run(wanted.name, wanted.tags, int(wanted.start_s * 1000))
            self._found[key] = StoredRun(run_id, "RUNNING", dict(wanted.tags), frozenset(), {})
        run = self._found[key]
        missing = {name: value for name, value in wanted.params.items() if name not in run.params}
        if missing:
            self._store.log(run.run_id, params=missing)
            run = StoredRun(run.run_id, run.status, run.tags, run.params | set(missing), run.metrics)
            self._found[key] = run
        return run
