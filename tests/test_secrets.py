"""A password in the address of MLflow, or in that of the storage, is in no file and in no line that is shown."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmray.cli import submit, sweep
from dmray.cli.sweep import _continue_command
from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import run_sweep
from dmray.errors import StorageError, TrackingError
from dmray.planning.manifest import write_manifest
from dmray.records import SweepFolder
from dmray.storage import open_store
from dmray.trackers.replay import replay
from tests.mlflow_mirror.mlflow_server import free_port
from tests.sweeps import tiny_plan

PASSWORD = "correct-horse"
ONE_TRIAL = [{"methods": ["dm"], "models": [{"d_model": 16, "n_layer": 1, "context_length": 4}]}]


@pytest.mark.filterwarnings("default")
def test_a_sweep_stores_and_says_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"http://me:{PASSWORD}@127.0.0.1:{free_port()}"
    monkeypatch.setattr(sys, "argv", ["dmray.sweep", "a.yaml", "--mlflow-uri", uri, "-o", f"tracking.mlflow_uri={uri}"])
    caplog.set_level(logging.DEBUG, logger="dmray")
    folder, plan = SweepFolder(tmp_path, "tiny"), tiny_plan(tmp_path, tracking={"mlflow_uri": uri}, grid=ONE_TRIAL)
    write_manifest(plan, folder)  # the sweep was started before, so that it continues without MLflow
    run_sweep(plan, folder, LocalRunner(), _report, resume=True, console=None, resume_command=_continue_command())
    assert "http://me:***@127.0.0.1" in folder.control.read_text()
    assert "http://me:***@127.0.0.1" in folder.manifest.read_text()
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert holding == []
    assert PASSWORD not in caplog.text
    with pytest.raises(TrackingError, match="dmray does not store passwords; set MLFLOW_TRACKING_USERNAME"):
        replay(folder)


def _report(folder: SweepFolder) -> Path:
    folder.report.mkdir(exist_ok=True)
    return folder.report


def test_an_error_of_a_command_shows_no_password(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: [1]\n")
    done = CliRunner().invoke(sweep.app, [str(file), "--mlflow-uri", f"htp://me:{PASSWORD}@host", "--plan"])
    assert done.exit_code == 1
    assert PASSWORD not in done.output


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        (f"s3://KEY:{PASSWORD}@bucket/runs", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (f"ftp://me:{PASSWORD}@host/runs", "FSSPEC_FTP_PASSWORD"),
        (f"abfs://c@a.dfs/runs?sig={PASSWORD}", "FSSPEC_ABFS_PASSWORD"),
    ],
)
def test_credentials_in_the_address_of_a_storage_are_refused(url: str, cure: str) -> None:
    with pytest.raises(StorageError, match=cure) as caught:
        open_store(url, "sweep")
    assert PASSWORD not in str(caught.value)


def test_a_job_with_a_password_is_not_sent() -> None:
    options = ["--storage", "/mnt/runs", "--mlflow-uri", f"http://me:{PASSWORD}@host"]
    done = CliRunner().invoke(submit.app, ["sweeps/quickstart.yaml", "--", *options])
    assert done.exit_code == 1
    assert "set MLFLOW_TRACKING_USERNAME" in done.output.replace("\n", " ")
    assert PASSWORD not in done.output


def test_a_sweep_with_a_placeholder_for_a_token_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "change-me")
    done = CliRunner().invoke(sweep.app, ["sweeps/quickstart.yaml", "--local", "--storage", "/nowhere"])
    assert done.exit_code == 1
    assert "the placeholder of an example" in done.output.replace("\n", " ")
