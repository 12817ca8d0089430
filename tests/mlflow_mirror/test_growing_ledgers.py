"""Eight trials' ledgers grow while MLflow follows: every point is there once, whatever keeps the runs, and whatever
happens to it meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.periodic_thread import PeriodicThread
from dmray.records import LedgerRecord, SweepFolder
from dmray.specs import TrialSpec
from tests.mlflow_mirror.examples import done, evaluated, example_sweep, started, trained, trials_of, write_ledger
from tests.mlflow_mirror.mlflow_server import Server, points_of_trials

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's dependencies warn about each other

STEPS = 30


def records() -> list[LedgerRecord]:
    progress = [record for step in range(1, STEPS + 1) for record in (trained(step), evaluated(step, step, 0))]
    return [started(), *progress, done(STEPS, best_step=STEPS)]


class Sweeps:
    """Two sweeps of four trials, each with a mirror of its own, into one store."""

    def __init__(self, uri: str | None, storage: Path, names: tuple[str, str] = ("one", "two")) -> None:
        self.uri, self.storage = uri, storage
        self._specs = [example_sweep(name=name, training={"steps": STEPS}) for name in names]
        self._mirrors = [
            MlflowMirror.open(uri, SweepFolder(storage, spec.name), spec, trials_of(spec)) for spec in self._specs
        ]

    def run(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Let all ledgers grow from a thread each, with the mirrors beside them, and close the mirrors."""
        growing = [
            threading.Thread(target=self._grow, args=(SweepFolder(self.storage, spec.name), trial))
            for spec in self._specs
            for trial in trials_of(spec)
        ]
        followers = [PeriodicThread(mirror.advance, every_s=0.02) for mirror in self._mirrors]
        for thread in [*growing, *followers]:
            thread.start()
        meanwhile()
        for thread in growing:
            thread.join()
        for follower in followers:
            follower.stop()
        for mirror in self._mirrors:
            lag = mirror.close()
            assert (lag.records, lag.problem) == (0, None)

    def _grow(self, folder: SweepFolder, trial: TrialSpec) -> None:
        for record in records():
            write_ledger(folder, trial, [record])
            time.sleep(0.01)

    def assert_complete(self) -> None:
        for spec in self._specs:
            uri = self.uri or f"sqlite:///{self.storage / 'mlflow.db'}"
            found = points_of_trials(uri, f"dmray/{spec.name}")
            trials = {name: run for name, run in found.items() if name.startswith("trial ")}
            assert len(trials) == 4
            for run in trials.values():
                assert run["status"] == "FINISHED"
                metrics = run["metrics"]
                assert metrics["train/loss"] == [(step, 0.5) for step in range(1, STEPS + 1)]
                assert metrics["eval/normalized_score"] == [(step, step) for step in range(1, STEPS + 1)]
                assert metrics["final/step"] == [(STEPS, STEPS)]


def test_in_an_sqlite_file(mlflow_storage: Path) -> None:
    sweeps = Sweeps(None, mlflow_storage)
    sweeps.run()
    sweeps.assert_complete()


def test_in_postgresql(postgres_uri: str, tmp_path: Path) -> None:
    unique = time.time_ns()  # a database that was named may have other tests' runs
    sweeps = Sweeps(postgres_uri, tmp_path, (f"one-{unique}", f"two-{unique}"))
    sweeps.run()
    sweeps.assert_complete()


def test_on_a_server_that_is_killed_and_started_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmray.mlflow_mirror.outage._LONGEST_PAUSE_S", 0.1)
    sweeps = Sweeps(server.uri, tmp_path, ("killed-one", "killed-two"))

    def kill() -> None:
        _wait_for_points(server.uri, "dmray/killed-one")
        server.stop()
        server.start()

    sweeps.run(kill)
    sweeps.assert_complete()


def _wait_for_points(uri: str, experiment: str) -> None:
    deadline = time.monotonic() + 60
    while not any(run["metrics"] for run in points_of_trials(uri, experiment).values()):
        assert time.monotonic() < deadline, "nothing arrives"
        time.sleep(0.05)
