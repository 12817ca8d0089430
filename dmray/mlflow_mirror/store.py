"""MLflow as a store of runs. It is imported when a store is opened, since that takes seconds.

Every call either takes effect or raises `StoreError`; a call that raised may have taken effect (an answer can be lost).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dmray.errors import TrackingError
from dmray.mlflow_mirror.layout import EXPERIMENT_TAGS, KEY, SWEEP_ID, DatasetUsed, Point, experiment_name, view_tags
from dmray.mlflow_mirror.model_registry import BestPolicy, ensure_registered
from dmray.mlflow_mirror.models import LoggedPolicy, ensure_logged
from dmray.mlflow_mirror.opening import CURE, find_address, without_secrets
from dmray.records.folders import SweepFolder

POINTS_PER_BATCH = 1000  # this and the next are MLflow's own limits
_LABELS_PER_BATCH, _LONGEST_VALUE = 100, 5000
_ENVIRONMENT = {  # the mirror tries again by itself, and a hanging server must not hold up the end of a sweep
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # else two lines for every run that ends
    "GIT_PYTHON_REFRESH": "quiet",
}


class StoreError(Exception):
    """A call failed. `refused`: the server answered and does not want this; else it may work later."""

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


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
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("alembic").setLevel(logging.WARNING)  # a new database would tell each of its migrations
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        self.uri = uri
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._experiment = self._ensure(experiment, artifacts)
        except (StoreError, ImportError) as cause:
            raise TrackingError(
                f"tracking.mlflow_uri: MLflow at {without_secrets(uri)} does not work: {cause}; {CURE}"
            ) from cause

    def find_runs(self, tag: str, value: str) -> list[StoredRun]:
        runs: list[Any] = []
        token: str | None = None
        while True:
            page = _call(
                self._client.search_runs,
                [self._experiment],
                filter_string=f"tags.`{tag}` = '{value}'",
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            runs.extend(page)
            token = page.token
            if not token:
                return [_stored(run) for run in runs]

    def create_run(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        short = {key: value[:_LONGEST_VALUE] for key, value in tags.items()}
        run = _call(self._client.create_run, self._experiment, start_time=start_ms, tags=short, run_name=name)
        run_id: str = run.info.run_id
        return run_id

    def log(
        self, run_id: str, points: Sequence[Point] = (), params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        assert len(points) <= POINTS_PER_BATCH
        assert max(len(params), len(tags)) <= _LABELS_PER_BATCH
        _call(
            self._client.log_batch,
            run_id,
            metrics=[Metric(point.key, point.value, point.time_ms, point.step) for point in points],
            params=[Param(key, value[:_LONGEST_VALUE]) for key, value in params.items()],
            tags=[RunTag(key, value[:_LONGEST_VALUE]) for key, value in tags.items()],
            synchronous=True,
        )

    def steps(self, run_id: str, key: str) -> set[int]:
        return {metric.step for metric in _call(self._client.get_metric_history, run_id, key)}

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        if status == "RUNNING":
            _call(self._client.update_run, run_id, status=status)
        else:
            _call(self._client.set_terminated, run_id, status=status, end_time=end_ms)

    def save(self, run_id: str, content: str | Path, place: str) -> None:
        if isinstance(content, str):
            _call(self._client.log_text, run_id, content, place)
        elif content.is_dir():
            _call(self._client.log_artifacts, run_id, str(content), place)
        else:
            _call(self._client.log_artifact, run_id, str(content), place or None)

    def log_dataset(self, run_id: str, dataset: DatasetUsed) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        known = Dataset(dataset.name, dataset.digest, dataset.source_type, dataset.source, profile=dataset.profile)
        _call(self._client.log_inputs, run_id, [DatasetInput(known, [InputTag("mlflow.data.context", "training")])])

    def save_policy(self, run_id: str, policy: LoggedPolicy) -> None:
        _call(ensure_logged, self._client, self._experiment, run_id, policy)

    def register(self, policy: BestPolicy, sweep_id: str) -> None:
        _call(ensure_registered, self._client, self._experiment, policy, sweep_id)

    def _ensure(self, name: str, artifacts: Path | None) -> str:
        found = _call(self._client.get_experiment_by_name, name)
        if found is None:
            location = None if artifacts is None else artifacts.as_uri()
            _call(self._client.create_experiment, name, artifact_location=location, tags=EXPERIMENT_TAGS)
            found = _call(self._client.get_experiment_by_name, name)
        if found.lifecycle_stage != "active":
            raise StoreError(f"experiment '{name}' was deleted there (mlflow experiments restore brings it back)")
        experiment: str = found.experiment_id
        for key, value in view_tags(experiment).items():
            if key not in found.tags:  # what people changed there stays
                _call(self._client.set_experiment_tag, experiment, key, value)
        return experiment


def open_store(uri: str | None, folder: SweepFolder) -> MlflowStore:
    """The experiment of the sweep at `uri`; None is the SQLite file of the storage folder.

    Raises:
        TrackingError: nothing answers there within about ten seconds, or it is no address for runs.
    """
    address = find_address(uri, folder)
    return MlflowStore(address.uri, experiment_name(folder.name), address.artifacts)


class LateStore:
    """A `RunStore` whose server did not answer yet: each call opens it first, and fails as long as that fails."""

    def __init__(self, uri: str | None, folder: SweepFolder) -> None:
        self._uri, self._folder = uri, folder
        self._store: MlflowStore | None = None

    def __getattr__(self, name: str) -> Any:
        if self._store is None:
            try:
                self._store = open_store(self._uri, self._folder)
            except TrackingError as problem:
                raise StoreError(str(problem)) from problem
        return getattr(self._store, name)


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call into MLflow; all that a server, a database or a network can do wrong becomes `StoreError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return function(*args, **kwargs)
    except MlflowException as cause:
        refused = 400 <= cause.get_http_status_code() < 500
        raise StoreError(_first_line(cause), refused) from cause
    except (OSError, SQLAlchemyError) as cause:
        raise StoreError(_first_line(cause)) from cause


def _first_line(cause: Exception) -> str:
    return (str(cause).splitlines() or [type(cause).__name__])[0][:500]


def _stored(run: Any) -> StoredRun:
    return StoredRun(
        run_id=run.info.run_id,
        status=run.info.status,
        tags=dict(run.data.tags),
        params=frozenset(run.data.params),
        metrics=dict(run.data.metrics),
        ended_s=(run.info.end_time or 0) / 1000,
    )
