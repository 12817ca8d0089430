"""Copy a sweep's ledgers into its trackers while no driver runs the sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dmray.coordination.sweep_lock import folder_lock, store_lock
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.mlflow_mirror.model_registry import BestPolicy
from dmray.mlflow_mirror.outage import Lag
from dmray.planning.manifest import read_manifest
from dmray.records import SweepFolder
from dmray.specs import NO_MLFLOW, TrackingSpec, WandbSpec
from dmray.storage import SweepCopy, existing_sweep_store
from dmray.trackers.table import Tracked, check_trackers, open_trackers, wanted_trackers


@dataclass(frozen=True)
class ReplayChanges:
    """Where to copy to, beside or instead of what the sweep file says; None and False: as it says.

    `champions`: copy to MLflow only, then register the best policies there.
    """

    mlflow_uri: str | None = None
    wandb: WandbSpec | None = None
    tensorboard: bool = False
    champions: bool = False

    def applied_to(self, tracking: TrackingSpec) -> TrackingSpec:
        """The trackers of a replay. A sweep without any tracker goes to the SQLite file of its storage."""
        wandb, tensorboard = self.wandb or tracking.wandb, self.tensorboard or tracking.tensorboard
        if self.champions:
            wandb, tensorboard = None, False
        uri = self.mlflow_uri or tracking.mlflow_uri
        if uri == NO_MLFLOW and self.mlflow_uri is None and wandb is None and not tensorboard:
            uri = None
        return tracking.model_copy(update={"mlflow_uri": uri, "wandb": wandb, "tensorboard": tensorboard})


@dataclass(frozen=True)
class ReplayResult:
    """What each tracker still lacks, where its runs are (lines), and the policies put into MLflow's model registry."""

    lags: Mapping[str, Lag]
    places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    registered: tuple[BestPolicy, ...] = ()

    @property
    def complete(self) -> bool:
        return all(lag.problem is None for lag in self.lags.values())


def replay(folder: SweepFolder, changes: ReplayChanges = ReplayChanges()) -> ReplayResult:
    """Bring what the ledgers hold into all trackers of the sweep. What is incomplete is not registered.

    Raises:
        StorageError: there is no sweep in the folder, or its driver runs: then that one fills the trackers in.
        MissingPackageError: the package of a tracker is not installed.
        TrackingError: a tracker's server does not answer, or MLflow's registry refuses.
    """
    plan = read_manifest(folder)
    tracking = changes.applied_to(plan.sweep.tracking)
    sweep = plan.sweep.model_copy(update={"tracking": tracking})
    check_trackers(tracking)
    with folder_lock(folder):
        trackers = open_trackers(Tracked(folder, sweep, plan.trials))
        lags = {tracker.name: tracker.close(folder.report) for tracker in trackers}
        registered: list[BestPolicy] = []
        for tracker in trackers if changes.champions else ():
            if isinstance(tracker, MlflowMirror) and lags[tracker.name].problem is None:
                registered += tracker.register()
        places = {kind.name: kind.place(tracking, folder) for kind in wanted_trackers(tracking)}
        return ReplayResult(lags, places, tuple(registered))


def replay_from_store(storage: str, name: str, changes: ReplayChanges = ReplayChanges()) -> ReplayResult:
    """`replay` of a sweep in an object store, which no driver may take up meanwhile.

    Raises:
        StorageError: as `replay`, or the store holds no such sweep.
        StoreUnavailableError: the store does not answer.
        TrackingError: as `replay`.
    """
    with store_lock(existing_sweep_store(storage, name)):
        copy = SweepCopy.downloaded(storage, name, with_weights=True)
        copy.fetch_report()
        replayed = replay(copy.folder, changes)
        copy.push()  # the name by which another machine finds these runs again, if they are the first
        return replayed
