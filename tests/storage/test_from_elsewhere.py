"""A sweep in an object store is watched, and sent commands, from a machine that has no copy of it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from dmray.cli import logs, report, status, track
from dmray.cli.control import pause_app, resume_app, stop_app
from dmray.coordination.heartbeat import Heartbeat, StoreHeartbeats
from dmray.coordination.store_commands import StoreCommands
from dmray.driver import store_session
from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import run_sweep
from dmray.errors import StorageError
from dmray.files import write_json
from dmray.progress.sweep_handle import StoreSweepHandle, find_sweep
from dmray.progress.trial_status import TrialStatus
from dmray.records import Ledger, LedgerRecord, SweepFolder
from dmray.storage import Store, sweep_folder
from dmray.trial import publish as remote
from tests.coordination.heartbeats import heartbeat_of
from tests.progress.ledgers import begun, done, evaluated, failed, started, trained
from tests.storage.conftest import S3
from tests.sweeps import sweep_file, tiny_plan
from tests.waiting import wait_until

runner = CliRunner()
ENDLESS: dict[str, Any] = {
    "grid": [{"methods": ["dm"], "models": [{"d_model": 16, "n_layer": 1, "context_length": 4}]}],
    "training": {"steps": 1_000_000, "batch_size": 8},
    "evaluation": {"episodes": 2, "every_steps": 1_000_000, "cohort_size": 2},
}


def in_store(url: str, tmp_path: Path, *ledgers: list[LedgerRecord]) -> tuple[Store, SweepFolder]:
    """A sweep of two trials, and the folder that the store has a copy of."""
    _, folder = begun(tmp_path / "origin", *ledgers)
    store = Store(f"{url}/tiny")
    send(store, folder)
    return store, folder


def send(store: Store, folder: SweepFolder) -> None:
    for path in folder.path.rglob("*"):
        if path.is_file():
            store.write(str(path.relative_to(folder.path)), path.read_bytes())


def look(url: str) -> dict[str, Any]:
    told = runner.invoke(status.app, [f"{url}/tiny", "--json"])
    assert told.exit_code in (0, 3), told.output
    return dict(json.loads(told.stdout))


def test_a_running_sweep_is_watched_paused_resumed_and_stopped(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_COMMANDS_EVERY_S", 0.05)
    monkeypatch.setattr(store_session, "_COMMANDS_EVERY_S", 0.05)
    monkeypatch.setattr(store_session, "_PULL_EVERY_S", 0.05)
    monkeypatch.setattr("dmray.coordination.commands._READ_EVERY_S", 0.01)
    plan, states = tiny_plan(s3_url, **ENDLESS), {}

    def drive() -> None:
        folder, quiet = sweep_folder(s3_url, "tiny", "driver"), Console(file=io.StringIO())
        report_nothing = folder.report
        states.update(
            run_sweep(
                plan,
                folder,
                LocalRunner(),
                lambda _: report_nothing,
                resume=False,
                console=quiet,
                resume_command="again",
            )
        )

    driver = threading.Thread(target=drive)
    driver.start()
    try:
        wait_until(lambda: Store(f"{s3_url}/tiny").version("sweep.json"))
        wait_until(lambda: look(s3_url)["steps"] > 0)
        wait_until(lambda: [row["phase"] and row["phase"]["name"] for row in look(s3_url)["running"]] == ["training"])
        elsewhere = subprocess.run(
            [sys.executable, "-m", "dmray", "status", str(sweep_file(tmp_path)), "--storage", s3_url],
            env={**os.environ, "DMRAY_CACHE": str(tmp_path / "another")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"driver process {os.getpid()}" in elsewhere.stdout
        assert "1 running" in elsewhere.stdout
        assert not (tmp_path / "another").exists()

        assert runner.invoke(pause_app, [f"{s3_url}/tiny"]).exit_code == 0
        wait_until(lambda: (seen := look(s3_url))["statuses"]["paused"] == 1 and seen["order"] == "pause")
        assert "resumed" in runner.invoke(resume_app, [f"{s3_url}/tiny"]).output
        wait_until(lambda: look(s3_url)["statuses"]["running"] == 1)
        stopped = runner.invoke(stop_app, [f"{s3_url}/tiny"])
        assert "continue with: again" in stopped.output
    finally:
        StoreCommands(Store(f"{s3_url}/tiny")).add(stop_order(s3_url))
        driver.join(60)
    assert list(states.values()) == [TrialStatus.PAUSED]
    seen = look(s3_url)
    assert (seen["driver"], seen["statuses"]["paused"], seen["folder"]) == (None, 1, f"{s3_url}/tiny")
    log = runner.invoke(logs.app, [f"{s3_url}/tiny", plan.trial_ids[0][-6:], "--attempt", "2"]).output
    assert "attempt 2 on " in log
    assert "attempt 1 on " not in log
    nobody = runner.invoke(resume_app, [f"{s3_url}/tiny"])
    assert (nobody.exit_code, "no driver is running; continue with:\n  again" in nobody.output) == (1, True)


def stop_order(url: str) -> Any:
    """So that a test that fails ends."""
    before = StoreCommands(Store(f"{url}/tiny")).latest()
    assert before is not None
    return before.model_copy(update={"kind": "stop", "number": before.number + 1})


def test_status_fetches_new_records_only_and_no_weights(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [started(), *(trained(step).model_copy(update={"stage_losses": {"x" * 900: 1.0}}) for step in range(1, 101))]
    store, origin = in_store(url, tmp_path, many, [started(), done(40)])
    running, ended = (origin.trial(trial_id) for trial_id in tiny_plan(url).trial_ids)
    write_json(ended.done, done(40).model_dump(mode="json"))  # long ago
    running.last_checkpoint.parent.mkdir()
    running.last_checkpoint.write_bytes(bytes(1_000_000))
    send(store, origin)
    fetched: list[tuple[str, int]] = []
    read = Store.read

    def noted(self: Store, name: str, start: int = 0) -> bytes | None:
        content = read(self, name, start)
        fetched.append((name, len(content or b"")))
        return content

    monkeypatch.setattr(Store, "read", noted)
    with find_sweep(f"{url}/tiny") as found:
        view = status._View(found)
        assert view.read().steps == 100 + 40
        told, names = dict(fetched), {name.rpartition("/")[2] for name, _ in fetched}
        assert names == {".driver.json", ".phase.json", "sweep.json", "DONE.json", "ledger.jsonl"}
        assert f"trials/{ended.path.name}/ledger.jsonl" not in told
        assert told[f"trials/{running.path.name}/ledger.jsonl"] == 65_536 < running.ledger.stat().st_size
        fetched.clear()
        view.read()
        assert [name for name, _ in fetched] == [".driver.json", ".phase.json"]
        fetched.clear()
        Ledger(running.ledger).append(evaluated(100))
        grown = running.ledger.stat().st_size
        send(store, origin)
        assert view.read().statuses["running"] + view.read().statuses["interrupted"] == 1
        assert max(size for _, size in fetched) < 2_000 < grown


def test_a_record_longer_than_the_fetched_tail_is_fetched_whole(s3_url: str, tmp_path: Path) -> None:
    long = trained(20).model_copy(update={"stage_losses": {"x" * 70_000: 1.0}})
    in_store(s3_url, tmp_path, [started(), long])
    assert look(s3_url)["steps"] == 20


@pytest.mark.parametrize(("age_s", "exit_status", "words"), [(2, 0, "driver process 7 on far"), (60, 3, "is dead")])
def test_the_heartbeat_in_the_store_says_whether_a_driver_is_alive(
    url: str, tmp_path: Path, age_s: float, exit_status: int, words: str
) -> None:
    store, _ = in_store(url, tmp_path, [started()])
    StoreHeartbeats(store).write(heartbeat_of("far", 3, pid=7, time_s=time.time() - age_s))
    told = runner.invoke(status.app, [f"{url}/tiny"])
    assert (told.exit_code, words in told.output) == (exit_status, True)
    paused = runner.invoke(pause_app, [f"{url}/tiny"])
    assert paused.exit_code == (0 if exit_status == 0 else 1)
    assert (StoreCommands(store).latest() is not None) is (exit_status == 0)
    assert runner.invoke(stop_app, [f"{url}/tiny"]).exit_code == 0
    latest = StoreCommands(store).latest()
    assert latest is not None
    assert latest.kind == "stop", "the clocks of two machines may differ"


def test_of_two_commands_at_the_same_moment_the_second_is_an_error(url: str, tmp_path: Path) -> None:
    store, _ = in_store(url, tmp_path, [started()])
    first, second = (StoreSweepHandle(store, SweepFolder(tmp_path / name, "tiny")) for name in ("first", "second"))
    assert [each.driver_and_command() for each in (first, second)] == [(None, None)] * 2
    first.send_command("stop")
    with pytest.raises(StorageError, match=r"another command came first \(stop, by "):
        second.send_command("pause")
    second.driver_and_command()
    second.send_command("run")
    latest = StoreCommands(store).latest()
    assert latest is not None
    assert (latest.kind, latest.number) == ("run", 2)


def test_a_log_is_followed_until_its_trial_ends(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, origin = in_store(url, tmp_path, [started()])
    (trial,) = (origin.path / "trials").iterdir()
    store.write(f"trials/{trial.name}/log.txt", b"one\n")
    monkeypatch.setattr(StoreSweepHandle, "look_every_s", 0.01)

    def go_on() -> None:
        time.sleep(0.2)
        store.write(f"trials/{trial.name}/log.txt", b"one\ntwo\n")
        store.write(f"trials/{trial.name}/DONE.json", done(40).model_dump_json().encode())

    worker = threading.Thread(target=go_on)
    worker.start()
    followed = runner.invoke(logs.app, [f"{url}/tiny", trial.name[:9], "--follow"])
    worker.join()
    assert (followed.exit_code, followed.output) == (0, "one\ntwo\n")
    unknown = runner.invoke(logs.app, [f"{url}/tiny", trial.name + "x"])
    assert (unknown.exit_code, trial.name in unknown.output) == (1, True)


def invoked(command: Any, *arguments: str) -> Result:
    told = runner.invoke(command, list(arguments))
    assert told.exit_code == 1, told.output
    return told


@pytest.mark.parametrize(
    ("command", "more"),
    [(status.app, []), (stop_app, []), (logs.app, ["x"]), (report.app, []), (track.app, ["replay"])],
)
def test_a_missing_sweep_or_bucket_is_named(s3_url: str, tmp_path: Path, command: Any, more: list[str]) -> None:
    Store(f"{s3_url}/other").write("sweep.json", b"{}")
    before, after = (more, []) if command is track.app else ([], more)
    no_sweep = invoked(command, *before, f"{s3_url}/tiny", *after)
    assert f"{s3_url}/tiny: there is no such sweep; {s3_url} has: other" in no_sweep.output
    no_bucket = invoked(command, *before, "s3://no-such-bucket/runs/tiny", *after)
    assert "create the bucket" in no_bucket.output
    no_name = invoked(command, *before, "s3://sweeps", *after)
    assert "not the URL of a sweep" in no_name.output


def test_watching_continues_while_the_store_does_not_answer(s3: S3, s3_url: str, tmp_path: Path) -> None:
    in_store(s3_url, tmp_path, [started(), trained(20)])
    with find_sweep(f"{s3_url}/tiny") as found:
        view = status._View(found)
        before = view.read()
        s3.stop()
        try:
            assert view.read_or(before) == before
            assert "the store does not answer" in invoked(pause_app, f"{s3_url}/tiny").output
        finally:
            s3.start()
        assert view.read_or(before).steps == 20


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's queries, not ours
def test_a_replay_from_a_store_is_found_again_by_the_next_machine(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    store, _ = in_store(s3_url, tmp_path, [started(), trained(20), failed(30)])
    store.write("report/report.md", b"# report")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for machine in ("one", "another"):
        monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / machine))
        told = runner.invoke(track.app, ["replay", f"{s3_url}/tiny", "--mlflow-uri", uri])
        assert told.exit_code == 0, told.output
    assert f"{s3_url}/tiny: MLflow has all records: {uri}, experiment dmray/tiny" in told.output
    client = mlflow.MlflowClient(uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "dmray/tiny"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["dmray.level"] for run in runs) == ["seed group", "sweep", "trial"]
    (top,) = [run for run in runs if run.data.tags["dmray.level"] == "sweep"]
    assert [each.path for each in client.list_artifacts(top.info.run_id, "report")] == ["report/report.md"]
    assert StoreHeartbeats(store).read() is None
    StoreHeartbeats(store).write(heartbeat_of("far", 3, pid=7, time_s=time.time()))
    threading.Timer(1.5, lambda: StoreHeartbeats(store).write(Heartbeat.now("x", 4))).start()
    assert "runs this sweep already" in invoked(track.app, "replay", f"{s3_url}/tiny", "--mlflow-uri", uri).output
