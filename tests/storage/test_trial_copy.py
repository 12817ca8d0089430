from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dmray.files import write_atomic
from dmray.records import AttemptFailed, AttemptStarted, Ledger, SweepFolder, TrialFolder
from dmray.storage import Store, clear_trial, download_trial


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path, "tiny")


@pytest.fixture
def trial(folder: SweepFolder) -> TrialFolder:
    trial = folder.trial("one")
    trial.path.mkdir(parents=True)
    (trial.path / ".worker.lock").touch()
    return trial


def begin(trial: TrialFolder, attempt: int, step: int) -> None:
    """Records and a checkpoint of one attempt that went on to `step`."""
    ledger = Ledger(trial.ledger)
    ledger.append(AttemptStarted(time_s=attempt, attempt=attempt, from_step=0, trial_id="one", spec={}, provenance={}))
    ledger.append(AttemptFailed(time_s=attempt, attempt=attempt, step=step, error="lost", traceback=""))
    write_atomic(trial.last_checkpoint, b"%d" % step)


def publish(store: Store, trial: TrialFolder) -> None:
    store.write("trials/one/ledger.jsonl", trial.ledger.read_bytes())
    store.write("trials/one/checkpoints/last.pt", trial.last_checkpoint.read_bytes())


def test_a_trial_that_is_not_in_the_store_is_left_unchanged(folder: SweepFolder, trial: TrialFolder, url: str) -> None:
    begin(trial, 1, 10)
    download_trial(Store(url), folder, trial)
    assert trial.last_checkpoint.read_bytes() == b"10"


def test_a_machine_without_files_gets_all_of_them(folder: SweepFolder, trial: TrialFolder, url: str) -> None:
    begin(trial, 1, 10)
    ledger = trial.ledger.read_bytes()
    publish(Store(url), trial)
    clear_trial(trial)
    download_trial(Store(url), folder, trial)
    assert trial.ledger.read_bytes() == ledger
    assert trial.last_checkpoint.read_bytes() == b"10"
    assert (trial.path / ".worker.lock").exists(), "who brings it holds it"


def test_local_files_that_extend_those_of_the_store_are_kept(folder: SweepFolder, trial: TrialFolder, url: str) -> None:
    begin(trial, 1, 10)
    publish(Store(url), trial)
    begin(trial, 2, 30)
    with trial.ledger.open("ab") as torn:
        torn.write(b'{"half')
    download_trial(Store(url), folder, trial)
    assert trial.last_checkpoint.read_bytes() == b"30"
    assert b"half" not in trial.ledger.read_bytes()


def test_newer_files_of_another_machine_are_fetched(folder: SweepFolder, trial: TrialFolder, url: str) -> None:
    begin(trial, 1, 10)
    before = trial.ledger.read_bytes()
    begin(trial, 2, 30)
    publish(Store(url), trial)
    write_atomic(trial.ledger, before)
    write_atomic(trial.last_checkpoint, b"10")
    download_trial(Store(url), folder, trial)
    assert trial.last_checkpoint.read_bytes() == b"30"
    assert [path.name for path in trial.path.parent.iterdir()] == ["one"], "nothing is lost, so nothing is moved away"


def test_local_attempts_that_conflict_with_the_store_are_moved_away_with_a_warning(
    folder: SweepFolder, trial: TrialFolder, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    begin(trial, 1, 10)
    common = trial.ledger.read_bytes()
    begin(trial, 2, 30)
    publish(Store(url), trial)
    theirs = trial.ledger.read_bytes()
    write_atomic(trial.ledger, common)
    begin(trial, 3, 50)
    with caplog.at_level(logging.WARNING):
        download_trial(Store(url), folder, trial)
    assert trial.ledger.read_bytes() == theirs
    (unpublished,) = trial.path.parent.glob("one.unpublished-*")
    assert TrialFolder(unpublished).last_checkpoint.read_bytes() == b"50"
    assert "2 local attempts (up to step 50)" in caplog.text


def test_a_trial_that_is_done_in_the_store_is_done_here(folder: SweepFolder, trial: TrialFolder, url: str) -> None:
    begin(trial, 1, 10)
    publish(Store(url), trial)
    Store(url).write("trials/one/DONE.json", b"{}")
    download_trial(Store(url), folder, trial)
    assert trial.done.exists()
