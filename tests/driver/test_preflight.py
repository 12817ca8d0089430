"""What a sweep says about its data sets before the first trial starts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dmray.datasets import WARNING
from dmray.driver import preflight
from dmray.errors import DatasetError, StorageError
from dmray.records import SweepFolder
from dmray.rollout import furthest_number, record
from dmray.sources import open_dataset, open_file, write_recording
from dmray.specs import Generation
from dmray.tasks import TASKS
from dmray.trial.build import attempt_started, build_trainer
from dmray.trial.job import TrialJob
from tests.sweeps import tiny_plan

OPEN = TASKS["maze2d-open"]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    generation = Generation(behaviour="expert", transitions=600)
    write_recording(tmp_path / "made.hdf5", record(OPEN, generation), OPEN, "a test")
    return tmp_path / "made.hdf5"


def check(tmp_path: Path, *files: Path) -> None:
    datasets: list[Any] = [{"name": file.stem, "task": OPEN.name, "path": str(file)} for file in files]
    trials = tiny_plan(tmp_path, datasets=datasets, seeds=[0, 1]).trials
    assert len(trials) == 4 * len(files)
    preflight.check(trials, tmp_path)


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("dmray")]


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dmray")


def test_a_good_data_set_is_nothing_to_speak_of(tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(tmp_path, made)
    assert logged(caplog) == []


@pytest.mark.parametrize(("dropped", "level"), [(10, "INFO"), (100, "WARNING")])
def test_each_note_is_said_once_for_each_data_set(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture, dropped: int, level: str
) -> None:
    with h5py.File(made, "r+") as file:
        file.move("timeouts", "truncations")
        file["truncations"][-1] = False
        file["truncations"][-1 - dropped] = True
    check(tmp_path, made)
    share = f"{dropped / 600:.1%}"
    assert logged(caplog) == [
        ("INFO", "made: timeouts: read from 'truncations'"),
        (level, f"made: rows: the last {dropped} of 600 ({share}) belong to no episode that ends, and are dropped"),
    ]


def test_a_number_that_is_constant_in_the_file_alone_is_a_warning(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with h5py.File(made, "r+") as file:
        file["observations"][:, 1] = 0.7
    check(tmp_path, made)
    ((level, message),) = logged(caplog)
    assert level == "WARNING"
    assert message.startswith("made: observation number 1 (from 0) is 0.7 ± 1e-06 in the file, but ")
    assert "the sweep trains on the file as it is" in message


def test_a_number_that_begins_as_in_the_file_and_changes_later_is_seen(made: Path) -> None:
    speed = 2
    with h5py.File(made, "r+") as file:
        file["observations"][:, speed] = 0.0
    number = furthest_number(OPEN, open_file(made, OPEN).episodes, 1)
    assert (number.index, number.is_far) == (speed, True)
    assert max(abs(number.lowest), abs(number.highest)) > 0.05, "what it is after steps, not at the start"


@pytest.fixture
def unreadable(tmp_path: Path, made: Path) -> tuple[Path, Path]:
    broken, vector = tmp_path / "broken.hdf5", tmp_path / "vector.hdf5"
    broken.write_bytes(made.read_bytes()[:1000])
    vector.write_bytes(made.read_bytes())
    with h5py.File(vector, "r+") as file:
        rewards = np.stack([file["rewards"][:]] * 2, axis=1)
        del file["rewards"]
        file["rewards"] = rewards
    return broken, vector


def test_a_data_set_that_cannot_be_read_is_said_and_the_others_run(
    tmp_path: Path, made: Path, unreadable: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    check(tmp_path, unreadable[1], made)
    ((level, message),) = logged(caplog)
    assert level == "WARNING"
    assert message.startswith(f"vector: its trials will fail: {unreadable[1]}: rewards are 600x2")


def test_a_sweep_of_which_no_data_set_can_be_read_does_not_start(tmp_path: Path, unreadable: tuple[Path, Path]) -> None:
    with pytest.raises(DatasetError, match="cannot be run here") as error:
        check(tmp_path, *unreadable)
    _, *lines = str(error.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["broken", "vector"]


def test_all_missing_files_are_named_before_any_is_read(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = [tmp_path / "none.hdf5", tmp_path / "nil.hdf5"]
    with pytest.raises(DatasetError, match="cannot be run here") as error:
        check(tmp_path, missing[0], made, missing[1])
    _, *lines = str(error.value).splitlines()
    assert lines == [f"  {file.stem}: {file}: no such file" for file in missing]
    assert logged(caplog) == []


def test_a_machine_without_room_for_the_data_says_that_they_were_not_checked(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("/cache: the disk is full")

    monkeypatch.setattr(preflight, "open_dataset", full)
    check(tmp_path, made)
    assert logged(caplog) == [("WARNING", "made: not checked on this machine: /cache: the disk is full")]


def test_what_the_simulator_says_about_the_data_is_in_the_records_of_trials(tmp_path: Path) -> None:
    plan, folder = tiny_plan(tmp_path), SweepFolder(tmp_path, "tiny")
    name = plan.trials[0].dataset.name
    folder.write_data_warnings({name: (f"{WARNING}number 1 is far away",), "other": ()})
    job = TrialJob.of(plan.trials[0], plan.sweep, folder)
    opened = open_dataset(job.trial.dataset, OPEN, folder.datasets)
    trainer, origin = build_trainer(job, OPEN, opened.episodes)
    notes = attempt_started(job, 1, trainer, origin, opened).provenance["dataset_notes"]
    assert f"{WARNING}number 1 is far away" in notes
    folder.data_warnings.write_text("[]")
    with pytest.raises(StorageError, match="not what dmray writes there"):
        TrialJob.of(plan.trials[0], plan.sweep, folder)
