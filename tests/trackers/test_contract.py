"""W&B, TensorBoard and MLflow keep the contract of trackers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dmray.mlflow_mirror.layout import COMMITTED
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.records import SweepFolder
from dmray.specs import SweepSpec, TrialSpec, WandbSpec
from dmray.testing.tracker_contract import Shown, TrackerContract
from dmray.trackers.run_mirror import RunMirror
from dmray.trackers.table import Tracker
from dmray.trackers.tensorboard_runs import TensorBoardRuns, tensorboard_folder
from dmray.trackers.wandb_runs import WandbRuns
from tests.mlflow_mirror.fake_store import FakeStore
from tests.trackers.readers import tensorboard_shown, wandb_shown

OF_THE_FOLDER = ("dmray.sweep_id", "mlflow.parentRunId")
OFFLINE = WandbSpec(project="dmray", mode="offline")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmray.mlflow_mirror.outage._LONGEST_PAUSE_S", 0.0)
    monkeypatch.setattr("dmray.mlflow_mirror.outage.time.sleep", lambda seconds: None)


class TestTensorBoard(TrackerContract):
    digits = 6  # its points are float32

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("tensorboard", reason='pip install "dmray[tensorboard]"')

    def open(self, folder: SweepFolder, sweep: SweepSpec, trials: Sequence[TrialSpec]) -> Tracker:
        return RunMirror(TensorBoardRuns(folder), folder, sweep, trials)

    def shown(self, folder: SweepFolder) -> dict[str, Shown]:
        return tensorboard_shown(folder)

    def break_down(self, folder: SweepFolder) -> None:
        _replace_by_file(tensorboard_folder(folder))

    def repair(self, folder: SweepFolder) -> None:
        _put_back(tensorboard_folder(folder))


@pytest.mark.usefixtures("wandb_alone")
class TestWandb(TrackerContract):
    def open(self, folder: SweepFolder, sweep: SweepSpec, trials: Sequence[TrialSpec]) -> Tracker:
        return RunMirror(WandbRuns(OFFLINE, folder, sweep), folder, sweep, trials)

    def shown(self, folder: SweepFolder) -> dict[str, Shown]:
        return wandb_shown(folder)

    def break_down(self, folder: SweepFolder) -> None:
        _replace_by_file(folder.path / "wandb")

    def repair(self, folder: SweepFolder) -> None:
        _put_back(folder.path / "wandb")


class TestMlflow(TrackerContract):
    """With MLflow's rules in memory; the same mirror with MLflow itself is tested in tests/mlflow_mirror."""

    @pytest.fixture(autouse=True)
    def _stores(self) -> None:
        self.stores: dict[Path, FakeStore] = {}

    def open(self, folder: SweepFolder, sweep: SweepSpec, trials: Sequence[TrialSpec]) -> Tracker:
        return MlflowMirror(self._store(folder), folder, sweep, trials)

    def shown(self, folder: SweepFolder) -> dict[str, Shown]:
        return {
            run.tags["dmray.key"]: Shown(
                [(key, step, value) for key, value, step, _ in run.points if key not in COMMITTED.values()],
                run.params,
                {name: text for name, text in run.tags.items() if name not in OF_THE_FOLDER},
                run.tags["dmray.status"],
            )
            for run in self._store(folder).level("trial")
        }

    def break_down(self, folder: SweepFolder) -> None:
        self._store(folder).down = True

    def repair(self, folder: SweepFolder) -> None:
        self._store(folder).down = False

    def _store(self, folder: SweepFolder) -> FakeStore:
        return self.stores.setdefault(folder.path, FakeStore())


def _replace_by_file(folder: Path) -> None:
    """So that nothing can be written below it, not even by root."""
    folder.rename(folder.with_suffix(".away"))
    folder.write_bytes(b"")


def _put_back(folder: Path) -> None:
    folder.unlink()
    folder.with_suffix(".away").rename(folder)
