from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dmray.coordination.commands import CommandWatcher, TrialPaused, read_command, send_command, wait_for_resume
from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import Runner, run_sweep
from dmray.errors import StorageError
from dmray.on_ray import RayRunner
from dmray.planning.plan import Plan
from dmray.progress.trial_status import DONE, TrialStatus
from dmray.records import AttemptFailed, AttemptPaused, AttemptStarted, SweepFolder, TrainProgress, read_ledger
from dmray.training import Trainer
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.run import run_trial
from tests.sweeps import science_of, tiny_plan
from tests.trial.jobs import job, science
from tests.waiting import wait_until

QUIET = Console(quiet=True)
LONG: dict[str, Any] = {
    "training": {"steps": 600, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
    "evaluation": {"episodes": 4, "every_steps": 300, "cohort_size": 2, "target_returns": [50.0]},
    "faults": {"checkpoint_every_steps": 100},
}


def records(folder: SweepFolder, kind: type[Any]) -> list[Any]:
    ledgers = folder.path.glob("trials/*/ledger.jsonl")
    return [record for ledger in ledgers for record in read_ledger(ledger) if isinstance(record, kind)]


def when(condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    """Do `act` in a thread as soon as `condition` holds."""

    def run() -> None:
        wait_until(condition)
        act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def run(planned: Plan, folder: SweepFolder, runner: Runner, resume: bool = False) -> dict[str, TrialStatus]:
    return run_sweep(
        planned, folder, runner, lambda sweep: sweep.path, resume=resume, console=QUIET, resume_command="again"
    )


@pytest.fixture
def read_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read commands at each step."""
    monkeypatch.setattr("dmray.coordination.commands._READ_EVERY_S", 0.001)


@pytest.mark.parametrize("at", [20, 33, 39])  # an evaluation, nothing special, the step before the last
def test_a_paused_trial_continues_with_the_same_numbers(
    tmp_path: Path, read_often: None, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    train, folder = Trainer.step, SweepFolder(tmp_path / "left", "tiny")

    def pause_after(self: Trainer) -> object:
        losses = train(self)
        if self.steps_done == at and not records(folder, AttemptPaused):
            send_command(folder, "pause")
        return losses

    run_trial(job(tmp_path / "undisturbed"), InlineEvaluation())
    monkeypatch.setattr(Trainer, "step", pause_after)
    with pytest.raises(TrialPaused):
        run_trial(job(tmp_path / "left"), InlineEvaluation())
    with pytest.raises(TrialPaused):  # paused still: not even begun
        run_trial(job(tmp_path / "left"), InlineEvaluation())
    send_command(folder, "run")
    run_trial(job(tmp_path / "left"), InlineEvaluation())
    assert science(job(tmp_path / "left")) == science(job(tmp_path / "undisturbed"))
    assert [record.step for record in records(folder, AttemptPaused)] == [at]
    assert len(records(folder, AttemptStarted)) == 2
    assert not records(folder, AttemptFailed)


def test_a_sweep_that_was_paused_and_stopped_ends_with_the_undisturbed_results(
    tmp_path: Path, read_often: None
) -> None:
    quiet = tiny_plan(tmp_path / "quiet", **LONG)
    run(quiet, SweepFolder(tmp_path / "quiet", "tiny"), LocalRunner())
    planned, folder = tiny_plan(tmp_path / "b", **LONG), SweepFolder(tmp_path / "b", "tiny")

    def pause_and_resume() -> None:
        send_command(folder, "pause")
        when(lambda: records(folder, AttemptPaused), lambda: send_command(folder, "run"))

    when(lambda: records(folder, TrainProgress), pause_and_resume)
    stopper = when(lambda: len(records(folder, AttemptStarted)) == 2, lambda: send_command(folder, "stop"))
    states = run(planned, folder, LocalRunner())
    stopper.join()
    assert not DONE.issuperset(states.values())
    assert len(records(folder, AttemptPaused)) == 2
    assert DONE.issuperset(run(planned, folder, LocalRunner(), resume=True).values())
    assert science_of(folder, planned.trial_ids) == science_of(SweepFolder(tmp_path / "quiet", "tiny"), quiet.trial_ids)
    assert not records(folder, AttemptFailed)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it may hit an open file
def test_kill_interrupts_the_driver_as_ctrl_c_does(tmp_path: Path, read_often: None) -> None:
    planned, folder = tiny_plan(tmp_path, **LONG), SweepFolder(tmp_path, "tiny")
    when(lambda: records(folder, AttemptStarted), lambda: send_command(folder, "kill"))
    with pytest.raises(KeyboardInterrupt):
        run(planned, folder, LocalRunner())


def test_a_kill_that_only_the_trials_have_read_interrupts_the_driver_too(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "tiny")
    send_command(folder, "kill")
    with pytest.raises(KeyboardInterrupt):
        wait_for_resume(folder)


def test_commands_are_numbered_and_keep_the_resume_command(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "tiny")
    assert read_command(folder) is None
    assert CommandWatcher(folder, 0).should_continue(), "without a driver, there are no commands"
    first = send_command(folder, "run", "dmray sweep x")
    second = send_command(folder, "pause")
    assert (first.number, second.number, second.resume_command) == (1, 2, "dmray sweep x")
    assert read_command(folder) == second


@pytest.mark.parametrize(("kinds", "continues"), [((), True), (("pause",), False), (("pause", "run"), False)])
def test_a_worker_that_missed_a_pause_exits_after_the_resume(
    tmp_path: Path, kinds: Sequence[str], continues: bool
) -> None:
    folder = SweepFolder(tmp_path, "tiny")
    number = send_command(folder, "run", "").number
    for kind in kinds:
        send_command(folder, kind)  # type: ignore[arg-type]
    assert CommandWatcher(folder, number).should_continue() is continues


@pytest.mark.ray
@pytest.mark.chaos
def test_a_sweep_on_ray_that_was_paused_ends_with_the_undisturbed_results(ray_session: None, tmp_path: Path) -> None:
    changes = {
        **LONG,
        "grid": [{"methods": ["dm"], "models": [{"d_model": 16, "n_layer": 1, "context_length": 4}]}],
        "seeds": [0, 1],
        "training": {**LONG["training"], "steps": 1200},
        "evaluation": {**LONG["evaluation"], "every_steps": 600},
        "resources": {"executor": "tune", "cpus_per_trial": 0.5, "cpus_per_evaluation_actor": 0.5},
        "tracking": {"log_every_steps": 20, "mlflow_uri": "off"},
    }
    quiet, planned = (tiny_plan(tmp_path / name, **changes) for name in ("quiet", "disturbed"))
    folder = SweepFolder(tmp_path / "disturbed", "tiny")
    run(quiet, SweepFolder(tmp_path / "quiet", "tiny"), LocalRunner())

    def pause_and_resume() -> None:
        send_command(folder, "pause")
        when(lambda: records(folder, AttemptPaused), lambda: send_command(folder, "run"))

    when(lambda: records(folder, AttemptStarted), pause_and_resume)
    assert DONE.issuperset(run(planned, folder, RayRunner()).values())
    assert records(folder, AttemptPaused)
    assert science_of(folder, planned.trial_ids) == science_of(SweepFolder(tmp_path / "quiet", "tiny"), quiet.trial_ids)
    assert not records(folder, AttemptFailed)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b" " * (2**20 + 1),
        b'{"kind": "stop", "number": "1", "sent_by": "a", "time_s": 1, "resume_command": ""}',
        b'{"kind": "stop", "number": true, "sent_by": "a", "time_s": 1, "resume_command": ""}',
        b'{"kind": "stop", "number": 1, "sent_by": "a", "time_s": 1e300, "resume_command": ""}',
        b'{"kind": "burn", "number": 1, "sent_by": "a", "time_s": 1, "resume_command": ""}',
    ],
)
def test_a_damaged_command_counts_as_none_is_named_and_is_replaced_by_the_next(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = SweepFolder(tmp_path, "sweep")
    folder.path.mkdir()
    folder.control.write_bytes(content)
    assert read_command(folder) is None
    assert f"{folder.control} holds no command" in caplog.text
    assert read_command(folder) is None
    assert caplog.text.count("holds no command") == 1, "workers read it every second"
    assert read_command(folder) != send_command(folder, "stop") == read_command(folder)


def test_escape_codes_in_a_command_do_not_reach_the_terminal(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "sweep")
    folder.path.mkdir()
    sent = send_command(folder, "stop", "\x1b[2Jrun\n")
    assert sent.resume_command == "?[2Jrun?"
    assert read_command(folder) == sent


def test_a_folder_in_the_place_of_the_command_is_an_error_with_the_cure(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "sweep")
    folder.control.mkdir(parents=True)
    assert read_command(folder) is None
    with pytest.raises(StorageError, match="is a folder, so no command can be sent; remove it"):
        send_command(folder, "stop")
