"""What W&B gets beside the contract of trackers: its names and settings, and what is checked before a sweep starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from dmray.errors import MissingPackageError, TrackingError, TrackingUnavailableError
from dmray.records import SweepFolder
from dmray.specs import TrackingSpec, WandbSpec
from dmray.trackers.run_mirror import RunMirror
from dmray.trackers.table import Tracked, check_trackers, open_trackers
from dmray.trackers.wandb_runs import STEP, WandbRuns, mode_of, read_wandb_file, require_account
from tests.mlflow_mirror.examples import (
    evaluated,
    example_sweep,
    started,
    stopped_trial,
    trained,
    trials_of,
    whole_trial,
    write_ledger,
)
from tests.trackers.readers import wandb_shown

OFFLINE = WandbSpec(project="p", mode="offline")
ONLINE = WandbSpec(project="p", mode="online")
SWEEP = example_sweep(early_stopping={"grace_steps": 20, "reduction_factor": 2, "within": "dataset"})
TRIALS = trials_of(SWEEP)

pytestmark = pytest.mark.usefixtures("wandb_alone")


def mirror(folder: SweepFolder, spec: WandbSpec = OFFLINE) -> RunMirror:
    return RunMirror(WandbRuns(spec, folder, SWEEP), folder, SWEEP, TRIALS)


def records_of(folder: SweepFolder, kind: str) -> list[dict[str, object]]:
    (path,) = (folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    return [record[kind] for record in read_wandb_file(path) if record["type"] == kind]


def test_a_run_has_the_names_of_its_trial_and_sweep_and_draws_by_optimizer_step(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIALS[0], [started(), trained(20), trained(40), evaluated(20, 50.0, 45.0)])
    assert mirror(folder).close().problem is None
    (run,) = records_of(folder, "run")
    assert (run["project"], run["run_group"], run["display_name"]) == ("p", "example", "DM|hopper-medium-v2|s0")
    assert run["run_id"] == f"{TRIALS[0].trial_id}-{folder.sweep_id()[:8]}"
    assert run["tags"] == ["dm", "hopper-medium-v2", "hopper"]
    assert {metric.get("step_metric") for metric in records_of(folder, "metric")} == {None, STEP}
    rows = [row["item"] for row in records_of(folder, "history")]
    assert [(row["_step"], row[STEP]) for row in rows] == [(1, 20), (2, 40), (3, 20)]  # the evaluation came late
    assert rows[0]["_timestamp"] == trained(20).time_s


def test_the_exit_of_a_run_says_how_its_trial_ended(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIALS[0], stopped_trial(10, 20, 30))
    assert mirror(folder).close().problem is None
    (end,) = records_of(folder, "exit")
    assert end["exit_code"] == 255
    (shown,) = wandb_shown(folder).values()
    assert (shown.status, shown.facts["dmray.stopped_at_step"]) == ("stopped_early", "20")


def test_a_group_is_named_by_the_file(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIALS[0], whole_trial(50, 60))
    mirror(folder, WandbSpec(project="p", group="both labs", mode="offline")).close()
    assert records_of(folder, "run")[0]["run_group"] == "both labs"


def test_another_project_gets_the_runs_too(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIALS[0], whole_trial(50, 60))
    mirror(folder).close()
    mirror(folder, WandbSpec(project="another", mode="offline")).close()
    assert records_of(folder, "run")[0]["project"] == "another"


def test_a_file_that_lacks_rows_is_noticed_and_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmray.mlflow_mirror.outage.time.sleep", lambda seconds: None)
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIALS[0], whole_trial(50, 60))
    rows = read_wandb_file

    def cut(path: Path) -> list[dict[str, object]]:
        return rows(path)[:12]

    monkeypatch.setattr("dmray.trackers.wandb_runs.read_wandb_file", cut)
    lag = mirror(folder).close()
    assert (lag.records, "rows" in str(lag.problem)) == (6, True)
    monkeypatch.undo()
    assert mirror(folder).close().problem is None
    assert len(records_of(folder, "history")) == 5


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_twice(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIALS[0], [started(), trained(20), evaluated(20, 50.0, 45.0)])
    code = "import sys; from tests.trackers.killed import follow; follow(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"followed\n"  # both trackers have the records
        os.kill(process.pid, signal.SIGKILL)
    write_ledger(folder, TRIALS[0], whole_trial(50, 60)[3:])
    assert mirror(folder).close().problem is None
    shown = wandb_shown(folder)[TRIALS[0].trial_id]
    losses = sorted((step, value) for name, step, value in shown.points if name == "train/loss")
    assert (losses, shown.status) == ([(20, 0.5), (40, 0.025)], "finished")


def test_a_mode_is_that_of_the_file_or_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    unnamed = WandbSpec(project="p")
    assert (mode_of(unnamed), mode_of(OFFLINE)) == ("online", "offline")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert (mode_of(unnamed), mode_of(OFFLINE)) == ("offline", "offline")
    with pytest.raises(TrackingError, match=r"WANDB_MODE is 'offline' in the environment, but .* is online"):
        mode_of(ONLINE)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(TrackingError, match=r"'disabled' .* unset WANDB_MODE, or leave out tracking.wandb"):
        mode_of(unnamed)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match=r'pip install "dmray\[wandb\]"'):
        check_trackers(TrackingSpec(wandb=OFFLINE))
    check_trackers(TrackingSpec())


def test_runs_online_need_a_server_and_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    require_account(OFFLINE)
    with pytest.raises(TrackingUnavailableError, match=r"cannot connect to http://127\.0\.0\.1:9"):
        require_account(ONLINE)
    monkeypatch.setattr("dmray.trackers.wandb_runs._connect", lambda url: None)
    with pytest.raises(TrackingError, match="no API key of W&B on this machine; run `wandb login` or set"):
        require_account(ONLINE)


def test_a_sweep_that_was_started_goes_on_without_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dmray.mlflow_mirror.outage.time.sleep", lambda seconds: None)
    monkeypatch.setattr("dmray.trackers.wandb_runs._INIT_S", 1.0)
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIALS[0], [started(), trained(20)])
    sweep = SWEEP.model_copy(update={"tracking": TrackingSpec(mlflow_uri="off", wandb=ONLINE)})
    with pytest.raises(TrackingUnavailableError):
        open_trackers(Tracked(folder, sweep, TRIALS))
    (tracker,) = open_trackers(Tracked(folder, sweep, TRIALS, started_before=True))
    assert "The sweep continues; W&B gets its records when it answers" in caplog.text
    tracker.hurry()
    assert not tracker.advance()
    assert "W&B takes no records" in caplog.text


def test_names_that_wandb_refuses_are_told_when_the_file_is_read() -> None:
    with pytest.raises(ValidationError, match="W&B allows no '/' in a name"):
        WandbSpec(project="my/project")
    with pytest.raises(ValidationError, match="api_key"):
        WandbSpec.model_validate({"project": "p", "api_key": "x"})
