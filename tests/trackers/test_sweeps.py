"""Sweeps with trackers, from the sweep file to the command that catches up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dmray.cli.sweep import app as sweep_app
from dmray.cli.track import app as track_app
from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import _mirrored, driver_phases, run_sweep
from dmray.errors import MissingPackageError
from dmray.mlflow_mirror.outage import Lag
from dmray.planning.manifest import read_manifest
from dmray.progress.trial_status import TrialStatus
from dmray.records import SweepFolder, TrainProgress, read_ledger
from dmray.specs import TrackingSpec, WandbSpec
from dmray.trackers.replay import ReplayChanges
from tests.sweeps import tiny_plan
from tests.trackers.readers import shown_files

BOTH: dict[str, Any] = {
    "mlflow_uri": "off",
    "wandb": {"project": "p", "mode": "offline"},
    "tensorboard": True,
    "log_every_steps": 5,
    "flush_every_s": 0.05,
}
ONE_TRIAL = {
    "grid": [{"methods": ["dm"], "models": [{"d_model": 8, "n_layer": 1, "context_length": 4}]}],
    "training": {"steps": 10, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2},
    "evaluation": {"episodes": 2, "every_steps": 5, "cohort_size": 2, "target_returns": [50.0]},
}


def _report(folder: SweepFolder) -> Path:
    folder.report.mkdir(exist_ok=True)
    return folder.report


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, wandb_alone: None) -> SweepFolder:
    """A sweep whose W&B could not write: its folder is a file."""
    pytest.importorskip("tensorboard", reason='pip install "dmray[tensorboard]"')
    storage = tmp_path_factory.mktemp("swept")
    folder = SweepFolder(storage, "tiny")
    folder.path.mkdir()
    (folder.path / "wandb").write_bytes(b"")
    plan = tiny_plan(storage, tracking=BOTH, **ONE_TRIAL)
    statuses = run_sweep(plan, folder, LocalRunner(), _report, resume=False)
    assert set(statuses.values()) == {TrialStatus.FINISHED}
    return folder


def test_a_tracker_that_cannot_write_costs_no_trial_and_the_command_brings_it_up_to_date(swept: SweepFolder) -> None:
    (swept.path / "wandb").unlink()
    done = CliRunner().invoke(track_app, ["replay", str(swept.path)])
    assert done.exit_code == 0, done.output
    assert f"W&B has all records: wandb sync {swept.path}/wandb/offline-run-*" in done.output
    assert f"TensorBoard has all records: tensorboard --logdir {swept.path}/tensorboard" in done.output
    assert "MLflow" not in done.output
    (trial,) = read_manifest(swept).trials
    records = read_ledger(swept.trial(trial.trial_id).ledger)
    losses = [(each.step, pytest.approx(each.loss)) for each in records if isinstance(each, TrainProgress)]
    for name, shown in shown_files(swept).items():
        (run,) = shown.values()
        assert [(step, value) for key, step, value in run.points if key == "train/loss"] == losses, name
        assert run.status == "finished"


class _Broken:
    """A tracker with a bug."""

    name = "Broken"

    def advance(self) -> bool:
        raise ZeroDivisionError

    def hurry(self) -> None:
        pass

    def close(self, report: Path | None = None) -> Lag:
        raise ZeroDivisionError


def test_a_tracker_with_a_bug_costs_neither_the_sweep_nor_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, closed = SweepFolder(tmp_path, "tiny"), []

    class _Good(_Broken):
        def close(self, report: Path | None = None) -> Lag:
            closed.append(report)
            return Lag(0, 0.0, None)

    folder.path.mkdir()
    monkeypatch.setattr("dmray.driver.session.open_trackers", lambda tracked: [_Broken(), _Good()])
    plan = tiny_plan(tmp_path, tracking=BOTH)
    with _mirrored(plan, folder, driver_phases(folder)) as attach:
        attach(folder.report)
    assert closed == [folder.report]
    assert f"Broken: copying the last records failed; to add them: python -m dmray.track replay {folder.path}" in (
        caplog.text
    )


def test_a_missing_package_is_told_before_the_sweep_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    folder = SweepFolder(tmp_path, "tiny")
    with pytest.raises(MissingPackageError, match=r'pip install "dmray\[wandb\]"'):
        run_sweep(tiny_plan(tmp_path, tracking=BOTH), folder, LocalRunner(), _report, resume=False)
    assert not folder.path.exists()


W, T = WandbSpec(project="p"), True


@pytest.mark.parametrize(
    ("file", "options", "expected"),
    [
        ((None, None, False), {}, (None, None, False)),
        (("off", None, False), {}, (None, None, False)),  # without any tracker: the storage's SQLite file
        (("off", W, T), {}, ("off", W, T)),
        (("off", W, False), {"mlflow_uri": "http://host"}, ("http://host", W, False)),
        (("off", None, False), {"wandb": W}, ("off", W, False)),
        ((None, None, False), {"tensorboard": True}, (None, None, True)),
        (("off", W, T), {"champions": True}, (None, None, False)),
        (("http://a", W, T), {"champions": True, "mlflow_uri": "http://b"}, ("http://b", None, False)),
    ],
)
def test_a_replay_goes_to_the_trackers_of_the_file_and_to_those_that_are_named(
    file: tuple[Any, ...], options: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    tracking = ReplayChanges(**options).applied_to(TrackingSpec(mlflow_uri=file[0], wandb=file[1], tensorboard=file[2]))
    assert (tracking.mlflow_uri, tracking.wandb, tracking.tensorboard) == expected


def test_a_wrong_field_of_a_tracker_is_told_with_the_right_one(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "name: a\ndatasets: [maze2d-umaze-v1]\nseeds: [0]\ngrid: [{methods: [dm]}]\n"
        "tracking: {wandb: {projekt: p}, tensorbord: true}\n"
    )
    done = CliRunner().invoke(sweep_app, [str(file), "--plan"])
    told = " ".join(done.output.split())
    assert "tracking.wandb.projekt: unknown field, did you mean 'project'?" in told
    assert "tracking.tensorbord: unknown field, did you mean 'tensorboard'?" in told


def test_an_option_adds_a_project_to_a_file_without_wandb(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "name: a\ndatasets: [maze2d-umaze-v1]\nseeds: [0]\ngrid: [{methods: [dm]}]\ntraining: {steps: 10}\n"
    )
    done = CliRunner().invoke(sweep_app, [str(file), "--show", "-o", "tracking.wandb.project=p"])
    assert done.exit_code == 0, done.output
    assert "project: p" in done.output
