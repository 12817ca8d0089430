"""The table of trackers, and how a sweep opens those that its file names."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dmray.errors import TrackingUnavailableError
from dmray.mlflow_mirror.database import sqlite_uri
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.mlflow_mirror.outage import Lag
from dmray.records import SweepFolder
from dmray.redaction import without_secrets
from dmray.specs import NO_MLFLOW, SweepSpec, TrackingSpec, TrialSpec
from dmray.trackers.run_mirror import RunMirror
from dmray.trackers.tensorboard_runs import TensorBoardRuns, require_tensorboard, tensorboard_folder
from dmray.trackers.wandb_runs import WandbRuns, mode_of, require_account, require_wandb

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """A copy of a sweep's ledgers, which are the truth: it never stops a sweep, and catches up after any failure.

    Contract: `dmray.testing.tracker_contract`. `name` is for people.
    """

    name: str

    def advance(self) -> bool:
        """Copy what is new; True when nothing is missing. A tracker that fails is a warning, never an error."""

    def hurry(self) -> None:
        """The sweep ends: from now on the tracker has some minutes for what is left. Called from another thread."""

    def close(self, report: Path | None = None) -> Lag:
        """Copy the rest, end every run, and the report if the tracker shows reports; what it lacks."""


@dataclass(frozen=True)
class Tracked:
    """What a tracker is opened for. `started_before`: the sweep was; then a server that is down does not stop it."""

    folder: SweepFolder
    sweep: SweepSpec
    trials: Sequence[TrialSpec]
    started_before: bool = False


@dataclass(frozen=True)
class TrackerKind:
    """One row of the table.

    `is_wanted`: whether the sweep file names it. `check`: raises a `DmrayError` if this machine lacks what it needs; it
    asks no server. `open`: raises too if a server does not answer. `place`: lines for people, where the runs are.
    """

    name: str
    is_wanted: Callable[[TrackingSpec], bool]
    check: Callable[[TrackingSpec], None]
    open: Callable[[Tracked], Tracker]
    place: Callable[[TrackingSpec, SweepFolder], tuple[str, ...]]


def _open_mlflow(tracked: Tracked) -> Tracker:
    uri = tracked.sweep.tracking.mlflow_uri
    return MlflowMirror.open(uri, tracked.folder, tracked.sweep, tracked.trials, may_be_late=tracked.started_before)


def _open_wandb(tracked: Tracked) -> Tracker:
    spec = tracked.sweep.tracking.wandb
    assert spec is not None
    require_wandb(spec)
    try:
        require_account(spec)
    except TrackingUnavailableError as problem:
        if not tracked.started_before:
            raise
        _log.warning("%s. The sweep continues; W&B gets its records when it answers", problem)
    return RunMirror(WandbRuns(spec, tracked.folder, tracked.sweep), tracked.folder, tracked.sweep, tracked.trials)


def _open_tensorboard(tracked: Tracked) -> Tracker:
    return RunMirror(TensorBoardRuns(tracked.folder), tracked.folder, tracked.sweep, tracked.trials)


def _mlflow_place(tracking: TrackingSpec, folder: SweepFolder) -> tuple[str, ...]:
    experiment = f"experiment dmray/{folder.name}"
    if tracking.mlflow_uri is None:
        ui = f"mlflow ui --backend-store-uri {shlex.quote(sqlite_uri(folder.mlflow_database))}"
        return ui, f"then open http://127.0.0.1:5000, {experiment}"
    return (f"{without_secrets(tracking.mlflow_uri)}, {experiment}",)


def _wandb_place(tracking: TrackingSpec, folder: SweepFolder) -> tuple[str, ...]:
    assert tracking.wandb is not None
    if mode_of(tracking.wandb) == "offline":
        return (f"wandb sync {shlex.quote(str(folder.path / 'wandb'))}/offline-run-*",)
    project = "/".join(filter(None, (tracking.wandb.entity, tracking.wandb.project)))
    return (f"project {project}, group {tracking.wandb.group or folder.name}",)


def _tensorboard_place(tracking: TrackingSpec, folder: SweepFolder) -> tuple[str, ...]:
    return (f"tensorboard --logdir {shlex.quote(str(tensorboard_folder(folder)))}",)


def _require_wandb(tracking: TrackingSpec) -> None:
    if tracking.wandb is not None:
        require_wandb(tracking.wandb)


TRACKERS = (
    TrackerKind(
        "MLflow", lambda tracking: tracking.mlflow_uri != NO_MLFLOW, lambda tracking: None, _open_mlflow, _mlflow_place
    ),
    TrackerKind("W&B", lambda tracking: tracking.wandb is not None, _require_wandb, _open_wandb, _wandb_place),
    TrackerKind(
        "TensorBoard",
        lambda tracking: tracking.tensorboard,
        lambda tracking: require_tensorboard(),
        _open_tensorboard,
        _tensorboard_place,
    ),
)


def wanted_trackers(tracking: TrackingSpec) -> tuple[TrackerKind, ...]:
    """Those that the sweep file names."""
    return tuple(kind for kind in TRACKERS if kind.is_wanted(tracking))


def check_trackers(tracking: TrackingSpec) -> None:
    """Check all trackers of a sweep before anything is written.

    Raises:
        MissingPackageError: the package of one is not installed.
        TrackingError: a setting of one cannot take effect.
    """
    for kind in wanted_trackers(tracking):
        kind.check(tracking)


def open_trackers(tracked: Tracked) -> list[Tracker]:
    """All trackers of a sweep.

    Raises:
        MissingPackageError: the package of one is not installed.
        TrackingError: one cannot be used, or its server does not answer at the first start of a sweep.
    """
    return [kind.open(tracked) for kind in wanted_trackers(tracked.sweep.tracking)]
