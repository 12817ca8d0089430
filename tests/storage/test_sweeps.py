"""Whole trials and sweeps on object stores."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dmray.cli import evaluate, report, sweep
from dmray.coordination.commands import TrialPaused, next_command, read_command, send_command
from dmray.coordination.store_commands import StoreCommands
from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import run_sweep
from dmray.driver.store_session import Refresh, sweep_lock
from dmray.errors import CheckpointError, StorageError
from dmray.planning.plan import Plan
from dmray.progress.trial_status import TrialStatus, trial_statuses
from dmray.records import AttemptFailed, AttemptPaused, AttemptStarted, SweepFolder, TrialDone
from dmray.records.records import ledger_line
from dmray.reporting import write_report
from dmray.specs import TrialSpec
from dmray.storage import Store, SweepCopy, sweep_folder
from dmray.trial import publish as remote
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.job import TrialJob
from dmray.trial.publish import share_recording
from dmray.trial.run import run_trial
from tests.storage.conftest import S3
from tests.storage.contents import from_steps, ledger_in_store, read
from tests.sweeps import science_of, sweep_file, tiny_plan
from tests.trial.jobs import Killed, StopAt


def run(plan: Plan) -> dict[str, TrialStatus]:
    def reported(folder: SweepFolder) -> Path:
        return write_report(folder).folder

    folder = sweep_folder(plan.sweep.storage, plan.sweep.name, "driver")
    return run_sweep(plan, folder, LocalRunner(), reported, resume=False, console=Console(file=io.StringIO()))


def job(plan: Plan) -> TrialJob:
    return TrialJob.of(plan.trials[0], plan.sweep, sweep_folder(plan.sweep.storage, plan.sweep.name, "driver"))


def science_in(plan: Plan) -> list[object]:
    return science_of(read(plan), plan.trial_ids)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """What the sweep measures with a folder as storage."""
    plan = tiny_plan(tmp_path_factory.mktemp("folder"))
    folder = SweepFolder(Path(plan.sweep.storage), "tiny")
    LocalRunner().run(plan, plan.trials, folder)
    return science_of(folder, plan.trial_ids)


@pytest.fixture(scope="module")
def on_s3(s3: S3) -> Plan:
    """A whole sweep in the mocked S3; to be read only."""
    s3.make_bucket()
    plan = tiny_plan("s3://sweeps/whole")
    assert set(run(plan).values()) == {TrialStatus.FINISHED}
    return plan


def test_a_sweep_on_s3_has_the_same_results_as_one_in_a_folder(on_s3: Plan, undisturbed: list[object]) -> None:
    assert science_in(on_s3) == undisturbed


def test_the_store_has_the_complete_sweep_and_the_working_folder_is_empty(on_s3: Plan) -> None:
    names, trial = set(Store("s3://sweeps/whole/tiny").list("")), on_s3.trial_ids[0]
    assert {"sweep.json", "report/report.html", f"evaluations/{trial}/step_000000040.parquet"} <= names
    assert {f"trials/{trial}/checkpoints/{name}.pt" for name in ("best", "final", "last")} <= names
    assert ".driver.json" not in names
    assert not sweep_folder("s3://sweeps/whole", "tiny", "worker").trial(trial).ledger.exists()


def test_a_finished_sweep_is_not_run_again(on_s3: Plan) -> None:
    class Refuses:
        def run(
            self, plan: Plan, todo: Sequence[TrialSpec], folder: SweepFolder, refresh: Refresh
        ) -> Sequence[TrialSpec]:
            raise AssertionError

    folder = sweep_folder(on_s3.sweep.storage, "tiny", "driver")
    console = Console(file=io.StringIO())
    states = run_sweep(on_s3, folder, Refuses(), lambda folder: folder.report, resume=False, console=console)
    assert set(states.values()) == {TrialStatus.FINISHED}


def test_a_missing_bucket_is_named_before_anything_starts(s3: S3) -> None:
    plan = tiny_plan("s3://no-such-bucket/runs")
    with pytest.raises(StorageError, match="create the bucket"):
        run(plan)
    assert not sweep_folder("s3://no-such-bucket/runs", "tiny", "worker").path.exists()


def test_a_plan_reads_the_store_and_works_without_one_that_it_may_not_read(
    on_s3: Plan, tmp_path: Path, other_machine: None
) -> None:
    told = [
        CliRunner().invoke(sweep.app, [str(sweep_file(tmp_path)), "--plan", "--storage", storage])
        for storage in ("s3://sweeps/whole", "s3://no-such-bucket/runs")
    ]
    assert [each.exit_code for each in told] == [0, 0]
    assert "trials: 2 finished" in told[0].output
    assert "trials: 2 waiting" in told[1].output
    assert "the status of trials may be out of date: s3://no-such-bucket/runs/tiny" in told[1].output


def test_a_report_is_made_from_a_store_and_uploaded_to_it(on_s3: Plan, other_machine: None) -> None:
    store = Store("s3://sweeps/whole/tiny")
    store.remove_all("report")
    told = CliRunner().invoke(report.app, ["s3://sweeps/whole/tiny"])
    assert told.exit_code == 0, told.output
    assert {"report/report.html", "report/report.md"} <= store.list("report").keys()


@pytest.mark.parametrize("file", ["", "/checkpoints/best.pt"])
def test_a_stored_policy_is_evaluated_from_a_store(on_s3: Plan, file: str, other_machine: None) -> None:
    again = CliRunner().invoke(evaluate.app, [f"s3://sweeps/whole/tiny/trials/{on_s3.trial_ids[0]}{file}"])
    assert "The sweep recorded the same returns, to the last digit." in again.output


def test_of_an_ended_trial_the_files_for_mlflow_are_fetched(on_s3: Plan, tmp_path: Path) -> None:
    copy = SweepCopy(Store("s3://sweeps/whole/tiny"), SweepFolder(tmp_path, "tiny"), with_weights=True)
    copy.download()
    trial = copy.folder.trial(on_s3.trial_ids[0])
    assert trial.final_checkpoint.exists()
    assert trial.best_checkpoint.exists()
    assert [path.name for path in trial.evaluations.iterdir()] == ["step_000000040.parquet"]
    assert not trial.last_checkpoint.exists(), "it is no result"


def test_what_is_removed_from_the_store_is_removed_from_copies(url: str, other_machine: None) -> None:
    store = Store(f"{url}/tiny")
    store.write("trials/one/ledger.jsonl", b"")
    folder = sweep_folder(url, "tiny", "reader")
    SweepCopy(store, folder, with_weights=True).download()
    assert folder.trial("one").ledger.exists()
    store.remove_all("trials")
    SweepCopy(store, folder).download()
    assert not folder.trial("one").ledger.exists()


def test_a_trial_that_is_not_in_the_store_is_an_error(on_s3: Plan) -> None:
    told = CliRunner().invoke(evaluate.app, ["s3://sweeps/whole/tiny/trials/none"])
    assert told.exit_code == 1
    assert "no such trial in the store" in told.output


def test_a_killed_trial_continues_from_the_store_on_another_machine(
    s3_url: str, undisturbed: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny_plan(s3_url)
    killed = subprocess.Popen([sys.executable, "-c", KILLED_AT_30, job(plan).model_dump_json()])
    assert killed.wait() == -signal.SIGKILL
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "another"))
    run_trial(job(plan), InlineEvaluation())
    assert from_steps(job(plan)) == [0, 30]
    folder = read(plan)
    assert list(trial_statuses(plan, folder).values()) == [TrialStatus.FINISHED, TrialStatus.WAITING]
    first = science_of(folder, plan.trial_ids[:1])
    assert first == undisturbed[: len(first)]


KILLED_AT_30 = """
import os, signal, sys, time
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.job import TrialJob
from dmray.trial.run import run_trial
from dmray.storage import Store
job = TrialJob.model_validate_json(sys.argv[1])
store = Store(f"{job.storage}/tiny")

def die(step, score):
    if step == 30:
        checkpoint = job.folder.last_checkpoint.read_bytes()
        while store.read(f"trials/{job.trial.trial_id}/checkpoints/last.pt") != checkpoint:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

run_trial(job, InlineEvaluation(), die)
"""


def test_a_stopped_worker_continues_from_its_newer_local_folder(url: str) -> None:
    work = job(tiny_plan(url))
    with pytest.raises(Killed):
        run_trial(work, InlineEvaluation(), StopAt(30))
    run_trial(work, InlineEvaluation())
    assert from_steps(work) == [0, 30]
    assert isinstance(ledger_in_store(work)[-1], TrialDone)


def test_a_failed_attempt_is_recorded_in_the_store(url: str) -> None:
    work = job(tiny_plan(url))
    store, trial = Store(f"{url}/tiny"), f"trials/{work.trial.trial_id}"
    begun = AttemptStarted(time_s=0.0, attempt=1, from_step=0, trial_id=work.trial.trial_id, spec={}, provenance={})
    store.write(f"{trial}/ledger.jsonl", ledger_line.dump_json(begun) + b"\n")
    store.write(f"{trial}/checkpoints/last.pt", b"no checkpoint")
    with pytest.raises(CheckpointError):
        run_trial(work, InlineEvaluation())
    failed = ledger_in_store(work)[-1]
    assert isinstance(failed, AttemptFailed)
    assert "not a dmray checkpoint" in failed.error


def test_an_outage_of_the_store_changes_no_result(s3: S3, s3_url: str, undisturbed: list[object]) -> None:
    plan = tiny_plan(s3_url)
    back = threading.Timer(2.0, s3.start)

    def outage(step: int, score: float | None) -> None:
        if step == 20:
            s3.stop()
            back.start()

    run_trial(job(plan), InlineEvaluation(), outage)
    back.join()
    first = science_of(read(plan), plan.trial_ids[:1])
    assert first == undisturbed[: len(first)]
    assert isinstance(ledger_in_store(job(plan))[-1], TrialDone)


def test_a_command_reaches_a_worker_through_the_store_and_its_checkpoint_is_published(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_COMMANDS_EVERY_S", 0.05)
    plan = tiny_plan(url, training={"steps": 1_000_000, "batch_size": 8})
    folder = sweep_folder(url, "tiny", "driver")
    store = Store(f"{url}/tiny")
    commands = StoreCommands(store)
    commands.add(send_command(folder, "run"))

    def pause(step: int, score: float | None) -> None:
        if step == 10:
            commands.add(send_command(folder, "pause"))

    work = job(plan)
    with pytest.raises(TrialPaused):
        run_trial(work, InlineEvaluation(), pause)
    assert isinstance(ledger_in_store(work)[-1], AttemptPaused)
    assert store.read(f"trials/{work.trial.trial_id}/checkpoints/last.pt") == work.folder.last_checkpoint.read_bytes()
    monkeypatch.setenv("DMRAY_CACHE", str(folder.path / "another"))
    with pytest.raises(TrialPaused):  # another machine's worker learns of it before it begins
        run_trial(work, InlineEvaluation())


def test_after_a_sync_driver_and_store_have_the_newer_command(url: str) -> None:
    folder, commands = sweep_folder(url, "tiny", "driver"), StoreCommands(Store(f"{url}/tiny"))
    commands.sync(folder)
    assert commands.latest() is None
    mine = send_command(folder, "run")
    commands.sync(folder)
    assert commands.latest() == mine
    theirs = mine.model_copy(update={"kind": "pause", "number": 7})
    assert commands.add(theirs)
    commands.sync(folder)
    assert read_command(folder) == theirs
    later = next_command(theirs, "stop")
    assert commands.add(later)
    send_command(folder, "run")  # of the same number
    assert not commands.add(read_command(folder))
    commands.sync(folder)
    assert read_command(folder) == commands.latest() == later


def test_all_machines_use_the_first_recording_of_a_data_set(url: str, other_machine: None) -> None:
    work, datasets = job(tiny_plan(url)), Store(f"{url}/datasets")
    share_recording(work)
    (name,) = datasets.list("")
    path = work.sweep_folder.datasets / name
    assert path.read_bytes() == datasets.read(name)
    datasets.write(name, b"another machine's")
    share_recording(work)
    assert path.read_bytes() == b"another machine's"


def test_the_driver_gets_the_evaluations_that_others_made_while_it_ran(tmp_path: Path) -> None:
    plan = tiny_plan(f"file://{tmp_path}/store")
    folder = sweep_folder(plan.sweep.storage, plan.sweep.name, "driver")
    path = folder.reevaluations / plan.trial_ids[0] / "final-0a1b2c.json"
    copy = SweepCopy.for_reading(plan.sweep.storage, plan.sweep.name)
    with sweep_lock(plan, folder) as refresh:
        copy.send(copy.folder.reevaluations / path.parent.name / path.name, b"{}")
        refresh()
        assert path.read_bytes() == b"{}", "the report and MLflow need it"
