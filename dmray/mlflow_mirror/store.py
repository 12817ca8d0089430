"""MLflow as a store of runs. It is imported when a store is opened, since that takes seconds.

Every call either takes effect or raises `StoreError`; a call that raised may have taken effect (an answer can be lost).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dmray.errors import StorageError, TrackingError, TrackingUnavailableError
from dmray.file_lock import file_lock
from dmray.mlflow_mirror.client import TIME_IS_OVER, Client, Deadlines, StoreError, first_line, set_environment
from dmray.mlflow_mirror.database import cure_of
from dmray.mlflow_mirror.layout import EXPERIMENT_TAGS, KEY, SWEEP_ID, DatasetUsed, Point, experiment_name, view_tags
from dmray.mlflow_mirror.model_registry import BestPolicy, ensure_registered
from dmray.mlflow_mirror.models import LoggedPolicy, ensure_logged
from dmray.mlflow_mirror.opening import CURE, find_address
from dmray.records.folders import SweepFolder
from dmray.redaction import without_secrets

__all__ = ["POINTS_PER_BATCH", "LateStore", "MlflowStore", "RunStore", "RunWanted", "StoreError", "StoredRun"]
__all__ += ["SweepRuns", "open_store"]
POINTS_PER_BATCH = 1000  # this and the next are MLflow's own limits
_LABELS_PER_BATCH, _LONGEST_VALUE = 100, 5000


@dataclass(frozen=True)
class StoredRun:
    """A run as a store shows it: `metrics` holds the latest value of each, `params` the keys that are set."""

    run_id: str
    status: str
    tags: Mapping[str, str]
    params: frozenset[str]
    metrics: Mapping[str, float]
    ended_s: float = 0.0


class RunStore(Protocol):
    """What the mirror needs of MLflow. More than three methods, because MLflow's runs have that many sides."""

    def find_runs(self, tag: str, value: str) -> list[StoredRun]:
        """All runs of the experiment with this tag, oldest first."""

    def create_run(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        """A new run, RUNNING; its id."""

    def log(
        self, run_id: str, points: Sequence[Point] = (), params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}
    ) -> None:
        """Params, then points (at most `POINTS_PER_BATCH`, committed together), then tags."""

    def steps(self, run_id: str, key: str) -> set[int]:
        """The steps that a metric has."""

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """RUNNING, FINISHED, FAILED or KILLED."""

    def save(self, run_id: str, content: str | Path, place: str) -> None:
        """Put a text into the artifact `place`, or a file or a folder's content into the artifact folder `place`."""

    def log_dataset(self, run_id: str, dataset: DatasetUsed) -> None:
        """What the run trains on. May be called again."""

    def save_policy(self, run_id: str, policy: LoggedPolicy) -> None:
        """A checkpoint as a model of the run. May be called again."""

    def register(self, policy: BestPolicy, sweep_id: str) -> None:
        """Put a policy into the model registry under its alias. May be called again."""

    def give_up_after(self, seconds: float) -> None:
        """All calls that are not done in so many seconds from now fail."""


@dataclass(frozen=True)
class RunWanted:
    """A run that should exist: `tags[KEY]` is what it is found by."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    start_s: float


class SweepRuns:
    """The runs of one sweep, found by one search and made where they are missing.

    After any error a new one is made, with a new search: the call may have taken effect.
    """

    def __init__(self, store: RunStore, sweep_id: str) -> None:
        self._store = store
        self._found: dict[str, StoredRun] = {}
        for run in store.find_runs(SWEEP_ID, sweep_id):
            if KEY in run.tags:  # else somebody else made it
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


class MlflowStore:
    """One experiment of an MLflow server or database."""

    def __init__(self, uri: str, experiment: str, artifacts: Path | None) -> None:
        """Connect; makes the experiment where it is missing, with its artifacts in `artifacts` (None: the server's).

        Raises:
            TrackingError: nothing answers, the server refuses, or the experiment was deleted.
        """
        set_environment()
        import mlflow  # noqa: F401 - before its loggers are set

        logging.getLogger("alembic").setLevel(logging.WARNING)  # a new database would tell each of its migrations
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)  # each attempt to connect, password included
        self._deadlines = Deadlines()
        try:
            self._client = Client(uri, self._deadlines)
            self._experiment = self._ensure(experiment, artifacts)
        except ImportError as cause:
            raise TrackingError(f"tracking.mlflow_uri: {without_secrets(uri)}: {first_line(cause)}") from cause
        except StoreError as cause:
            raise TrackingUnavailableError(
                f"tracking.mlflow_uri: MLflow at {without_secrets(uri)} does not work: {cause}; {_cure(cause)}"
            ) from cause

    def give_up_after(self, seconds: float) -> None:
        self._deadlines.give_up_after(seconds)

    def find_runs(self, tag: str, value: str) -> list[StoredRun]:
        runs: list[Any] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                filter_string=f"tags.`{tag}` = '{value}'",
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            runs.extend(page)
            if page.token == token and token is not None:
                raise StoreError("the server answers with the same page of runs again and again")
            token = page.token
            if not token:
                return [_stored(run) for run in runs]

    def create_run(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        short = {key: value[:_LONGEST_VALUE] for key, value in tags.items()}
        run = self._client.create_run(self._experiment, start_time=start_ms, tags=short, run_name=name)
        run_id: str = run.info.run_id
        return run_id

    def log(
        self, run_id: str, points: Sequence[Point] = (), params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        assert len(points) <= POINTS_PER_BATCH
        assert max(len(params), len(tags)) <= _LABELS_PER_BATCH
        self._client.log_batch(
            run_id,
            metrics=[Metric(point.key, point.value, point.time_ms, point.step) for point in points],
            params=[Param(key, value[:_LONGEST_VALUE]) for key, value in params.items()],
            tags=[RunTag(key, value[:_LONGEST_VALUE]) for key, value in tags.items()],
            synchronous=True,
        )

    def steps(self, run_id: str, key: str) -> set[int]:
        return {metric.step for metric in self._client.get_metric_history(run_id, key)}

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        if status == "RUNNING":
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status=status, end_time=end_ms)

    def save(self, run_id: str, content: str | Path, place: str) -> None:
        if isinstance(content, str):
            self._client.log_text(run_id, content, place)
        elif content.is_dir():
            self._client.log_artifacts(run_id, str(content), place)
        else:
            self._client.log_artifact(run_id, str(content), place or None)

    def log_dataset(self, run_id: str, dataset: DatasetUsed) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        known = Dataset(dataset.name, dataset.digest, dataset.source_type, dataset.source, profile=dataset.profile)
        self._client.log_inputs(run_id, [DatasetInput(known, [InputTag("mlflow.data.context", "training")])])

    def save_policy(self, run_id: str, policy: LoggedPolicy) -> None:
        try:
            ensure_logged(self._client, self._experiment, run_id, policy)
        except OSError as cause:  # the copy that it makes first, on this machine
            raise StoreError(first_line(cause)) from cause

    def register(self, policy: BestPolicy, sweep_id: str) -> None:
        ensure_registered(self._client, self._experiment, policy, sweep_id)

    def _ensure(self, name: str, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = None if artifacts is None else artifacts.as_uri()
            self._client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
            found = self._client.get_experiment_by_name(name)
        if found is None or not found.experiment_id:
            raise StoreError("what answers there is no MLflow server")
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"tracking.mlflow_uri: MLflow's experiment '{name}' was deleted; bring it back: "
                f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        experiment: str = found.experiment_id
        for key, value in view_tags(experiment).items():
            if key not in found.tags:  # what people changed there stays
                self._client.set_experiment_tag(experiment, key, value)
        return experiment


def open_store(uri: str | None, folder: SweepFolder) -> MlflowStore:
    """The experiment of the sweep at `uri`; None is the SQLite file of the storage folder.

    Raises:
        TrackingError: nothing answers there within about ten seconds, or it is no address for runs.
    """
    set_environment()
    try:
        address = find_address(uri, folder)
    except StoreError as cause:  # a database server that accepts and is silent
        raise TrackingUnavailableError(f"tracking.mlflow_uri: {without_secrets(uri or '')}: {cause}; {CURE}") from cause
    name = experiment_name(folder.name)
    if address.lock is None:
        return MlflowStore(address.uri, name, address.artifacts)
    try:
        with file_lock(address.lock, 120.0, busy="another process has been making MLflow's tables for two minutes"):
            return MlflowStore(address.uri, name, address.artifacts)
    except StorageError as cause:
        raise TrackingUnavailableError(f"tracking.mlflow_uri: {cause}; {CURE}") from cause


class LateStore:
    """A `RunStore` whose server did not answer yet: each call opens it first, and fails as long as that fails."""

    def __init__(self, uri: str | None, folder: SweepFolder) -> None:
        self._uri, self._folder = uri, folder
        self._store: MlflowStore | None = None
        self._give_up_at = float("inf")

    def give_up_after(self, seconds: float) -> None:
        self._give_up_at = time.monotonic() + seconds
        if self._store is not None:
            self._store.give_up_after(seconds)

    def __getattr__(self, name: str) -> Any:
        if self._store is None:
            if time.monotonic() >= self._give_up_at:
                raise StoreError(TIME_IS_OVER)
            try:
                self._store = open_store(self._uri, self._folder)
                self._store.give_up_after(self._give_up_at - time.monotonic())
            except TrackingError as problem:
                raise StoreError(str(problem)) from problem
        return getattr(self._store, name)


def _cure(problem: StoreError) -> str:
    if any(word in str(problem) for word in ("401", "403", "Unauthorized", "Forbidden", "no password")):
        return f"set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (PGPASSWORD for PostgreSQL), or {CURE}"
    return (cure_of(str(problem)) if "sqlite3" in str(problem) else None) or CURE


def _stored(run: Any) -> StoredRun:
    return StoredRun(
        run_id=run.info.run_id,
        status=run.info.status,
        tags=dict(run.data.tags),
        params=frozenset(run.data.params),
        metrics=dict(run.data.metrics),
        ended_s=(run.info.end_time or 0) / 1000,
    )
