"""Runs online, on a server in this process that W&B's own client talks to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmray.records import SweepFolder
from dmray.specs import WandbSpec
from dmray.trackers.run_mirror import RunMirror
from dmray.trackers.wandb_runs import STEP, WandbRun, WandbRuns
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


def test_a_run_that_could_not_be_opened_is_opened_by_a_later_try_of_the_same_driver(
    tmp_path: Path, server: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmray.mlflow_mirror.outage._LONGEST_PAUSE_S", 0.0)
    folder = SweepFolder(tmp_path, "example")
    write_ledger(folder, TRIAL, whole_trial(50, 60)[:3])
    driver = mirror(folder)
    assert driver.advance()
    server.refused = True
    write_ledger(folder, TRIALS[1], whole_trial(50, 60))
    assert not driver.advance()
    server.refused = False
    write_ledger(folder, TRIAL, whole_trial(50, 60)[3:])
    advanced = [driver.advance() for _ in range(2)]  # the run that was open is opened again too
    assert (advanced[-1], driver.close().problem) == (True, None)
    assert [_losses(run) for run in server.runs.values()] == [[(20, 0.05), (40, 0.025)]] * 2


def test_a_run_that_is_always_refused_stops_the_others_ever_more_rarely(
    tmp_path: Path, wandb_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []
    monkeypatch.setattr("dmray.trackers.wandb_runs._tear_down", lambda: ended.append(True))
    runs = WandbRuns(WandbSpec(project="p", mode="online"), SweepFolder(tmp_path, "example"), SWEEP)
    now = [0.0]
    monkeypatch.setattr("dmray.trackers.wandb_runs.time", SimpleNamespace(monotonic=lambda: now[0]))
    at: list[float] = []
    for second in range(0, 1000, 20):
        now[0] = float(second)
        runs._open[TRIALS[1].trial_id] = WandbRun(_Finished(), runs, TRIALS[1])  # type: ignore[arg-type]
        runs._end_session()
        at += [now[0]] * (len(ended) - len(at))
    assert at == [0, 60, 180, 420, 900]


class _Finished:
    starting_step = 0

    def finish(self, exit_code: int) -> None:
        """A run that ends at once."""


def _losses(run: ServerRun) -> list[tuple[int, float]]:
    return [(line[STEP], line["train/loss"]) for _, line in sorted(run.lines.items()) if "train/loss" in line]
