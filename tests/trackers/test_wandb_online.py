"""Runs online, on a server in this process that W&B's own client talks to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmray.records import SweepFolder
from dmray.specs import WandbSpec
from dmray.trackers.run_mirror import RunMirror
from dmray.trackers.wandb_runs import STEP, WandbRuns
from tests.mlflow_mirror.examples import example_sweep, trials_of, whole_trial, write_ledger
from tests.trackers.fake_wandb import FakeWandb, ServerRun

SWEEP = example_sweep()
TRIAL, *_ = TRIALS = trials_of(SWEEP)
KEY = "0123456789" * 4


@pytest.fixture
def server(wandb_alone: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    import wandb

    fake = FakeWandb()
    wandb.teardown()  # it has read its settings for the tests offline
    monkeypatch.setenv("WANDB_BASE_URL", fake.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield fake
    wandb.teardown()
    fake.stop()


def mirror(folder: SweepFolder) -> RunMirror:
    return RunMirror(WandbRuns(WandbSpec(project="p", mode="online"), folder, SWEEP), folder, SWEEP, TRIALS)


def test_a_run_that_goes_on_gets_the_rows_that_the_server_lacks(
    tmp_path: Path, server: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dmray.sweep", "--mlflow-uri", "http://me:correct-horse@host"])
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIAL, whole_trial(50, 60)[:3])
    assert mirror(folder).close().problem is None
    ((run_id, run),) = server.runs.items()
    assert (_losses(run), run.exit_code) == ([(20, 0.05)], 255)
    write_ledger(folder, TRIAL, whole_trial(50, 60)[3:])
    (folder.path / "wandb" / "seen" / f"{TRIAL.trial_id}.json").unlink()  # only the server knows how far it has come
    assert mirror(folder).close().problem is None
    assert list(server.runs) == [run_id]
    assert [line["_step"] for _, line in sorted(run.lines.items())] == [1, 2, 3, 4, 5]
    assert (_losses(run), run.exit_code) == ([(20, 0.05), (40, 0.025)], 0)
    assert "correct-horse" not in run.sent
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def _losses(run: ServerRun) -> list[tuple[int, float]]:
    return [(line[STEP], line["train/loss"]) for _, line in sorted(run.lines.items()) if "train/loss" in line]
