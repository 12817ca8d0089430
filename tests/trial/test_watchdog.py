from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmray.progress.trial_status import TrialStatus, trial_status
from dmray.records import AttemptFailed, read_ledger
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.run import run_trial
from dmray.trial.watchdog import Watchdog, mark_frozen, note_hang
from tests.trial.jobs import job

HANGS = """
import ctypes, sys
from pathlib import Path
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.run import run_trial
from dmray.trial.watchdog import Watchdog
from dmray.training import Trainer
from tests.trial.jobs import job

train, arm, steps = Trainer.step, Watchdog.step, []
def hang_at_25(self):
    if self.steps_done == 25:
        ctypes.PyDLL(None).sleep(600)  # in C, with Python's lock held
    return train(self)
def impatient_at_25(self):
    steps.append(1)
    if len(steps) == 25:  # before, the machine may be as slow as it is
        self._timeout_s, self._armed_at = 1.0, float("-inf")
    arm(self)
Trainer.step, Watchdog.step = hang_at_25, impatient_at_25
run_trial(job(Path(sys.argv[1])), InlineEvaluation())
"""


def test_a_hung_trial_is_ended_with_its_stack_in_the_ledger_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    work = job(tmp_path)
    ended = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path)], stderr=subprocess.DEVNULL, check=False)
    assert ended.returncode == 1
    assert trial_status(work.trial, work.folder) is TrialStatus.STARTED
    assert run_trial(work, InlineEvaluation()).status == "finished"
    [failure] = [record for record in read_ledger(work.folder.ledger) if isinstance(record, AttemptFailed)]
    assert failure.error.startswith("TrainingHang: no training step")
    assert "hang_at_25" in failure.traceback
    assert (failure.attempt, failure.step) == (1, 20)
    assert not work.folder.hang.exists()


def test_a_hang_that_nobody_took_up_again_is_a_failure_too(tmp_path: Path) -> None:
    work = job(tmp_path)
    folder = work.folder
    folder.path.mkdir(parents=True)
    folder.hang.write_text("Thread 0x1 (most recent call first):")
    assert note_hang(folder)
    assert trial_status(work.trial, folder) is TrialStatus.FAILED
    assert not note_hang(folder)


def test_stacks_that_were_never_written_are_no_hang(tmp_path: Path) -> None:
    folder = job(tmp_path).folder
    folder.path.mkdir(parents=True)
    folder.hang.touch()
    assert not note_hang(folder)
    assert not folder.hang.exists()
    assert not folder.ledger.exists()


@pytest.mark.parametrize("timeout_s", [None, 0.5])
def test_waiting_for_evaluations_and_what_comes_after_the_trial_are_no_hang(
    tmp_path: Path, timeout_s: float | None
) -> None:
    folder = job(tmp_path).folder
    folder.path.mkdir(parents=True)
    watchdog = Watchdog(folder, timeout_s)
    with watchdog.watching():
        watchdog.step()
        watchdog.pause()
        time.sleep(1)  # would end this process
    assert not folder.hang.exists()


@pytest.mark.parametrize(("timeout_s", "first_s"), [(10.0, 3600.0), (7200.0, 7200.0)])
def test_what_comes_before_the_first_step_is_watched_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float, first_s: float
) -> None:
    folder, armed = job(tmp_path).folder, []
    folder.path.mkdir(parents=True)
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda seconds, **_: armed.append(seconds))
    watchdog = Watchdog(folder, timeout_s)
    with watchdog.watching():
        assert armed == [first_s]
        watchdog.step()
    assert armed == [first_s, timeout_s]


def test_a_worker_that_was_killed_because_it_was_stopped_has_a_failure_that_says_so(tmp_path: Path) -> None:
    folder = job(tmp_path).folder
    folder.path.mkdir(parents=True)
    mark_frozen(folder, pid=7, stopped_for_s=30.0)
    assert note_hang(folder)
    [failure] = [record for record in read_ledger(folder.ledger) if isinstance(record, AttemptFailed)]
    assert failure.error == "WorkerFrozen: process 7 was stopped (SIGSTOP) for 30 s and was killed"
