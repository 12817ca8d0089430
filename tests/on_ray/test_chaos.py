"""Random kills and freezes over a whole sweep: in the end, its records are those of an undisturbed run.

`DMRAY_CHAOS=5 pytest tests/on_ray/test_chaos.py` runs so many seeds of chaos with both executors; else it is one
with Ray Tune alone, whose trials start fast (tests/on_ray/test_nodes.py takes workers of Ray Train away).

Kill -9 of the driver (which is then resumed) and of the MLflow server (which is then started again); kill -9 or SIGSTOP
of workers that train, of evaluation actors and their dispatcher, of the drivers of trials. In random order, each when
the sweep has done a random part of its steps: on a fast machine too, no hit comes after the end.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dmray.planning.plan import plan
from dmray.progress.trial_status import TrialStatus, trial_statuses
from dmray.records import AttemptStarted, SweepFolder, TrainProgress, read_ledger
from dmray.specs import load_sweep
from tests.mlflow_mirror.mlflow_server import Server, points_of_trials
from tests.sweeps import science_of, sweep_file

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]

CHAOS = int(os.environ.get("DMRAY_CHAOS", "0"))
SEEDS = {"tune": 2, "train": 2}  # of DM and DT
CHANGES = {
    "training": {"steps": 400, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
    "evaluation": {"episodes": 4, "every_steps": 100, "cohort_size": 2, "target_returns": [50.0]},
    "faults": {"checkpoint_every_steps": 50, "worker_restarts": 9, "driver_restarts": 9, "frozen_timeout_s": 1.0},
}
RESOURCES = {"cpus_per_trial": 0.5, "cpus_per_evaluation_actor": 0.5, "evaluation_actors": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("chaos-mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module", params=["tune", "train"] if CHAOS else ["tune"])
def undisturbed(
    request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, object, object]:
    """An executor, and what a run without Ray and without faults records: in its ledgers, in MLflow."""
    executor: str = request.param
    file = chaos_file(tmp_path_factory.mktemp("undisturbed"), f"undisturbed-{executor}", executor, server)
    subprocess.run(command(file, "--local"), check=True, capture_output=True, timeout=600)
    return executor, *recorded(file, server)


@pytest.mark.parametrize("chaos", range(max(CHAOS, 1)))
def test_random_kills_change_nothing_that_is_recorded(
    undisturbed: tuple[str, object, object], server: Server, tmp_path: Path, chaos: int
) -> None:
    executor, *expected = undisturbed
    file = chaos_file(tmp_path, f"chaos-{executor}-{chaos}", executor, server)
    monkey = Monkey(file, server, random.Random(chaos))
    try:
        monkey.run_to_the_end()
    finally:
        monkey.stop()
    assert len(monkey.killed) >= 3, f"the sweep was over too soon: only {monkey.killed} were killed"
    states = trial_statuses(plan(load_sweep(file)), folder_of(file))
    assert set(states.values()) == {TrialStatus.FINISHED}, monkey.killed
    assert list(recorded(file, server)) == expected, monkey.killed


class Monkey:
    """Runs a sweep's driver until it is done, and kills or freezes something now and then."""

    def __init__(self, file: Path, server: Server, rng: random.Random) -> None:
        self._file, self._server, self._rng = file, server, rng
        self._signal = rng.choice([signal.SIGKILL, signal.SIGSTOP])
        self._driver = self._start()
        self.killed: list[str] = []
        self._kills: dict[str, Callable[[], bool]] = {
            "driver": self._kill_driver,
            "worker": self._kill_worker,
            "evaluation actor": lambda: self._kill_process("ray::RolloutActor"),
            "dispatcher": lambda: self._kill_process("ray::Dispatcher"),
            "driver of a trial": lambda: self._kill_process("ray::ImplicitFunc"),
            "MLflow": self._kill_server,
        }

    def run_to_the_end(self, timeout_s: float = 600.0) -> None:
        deadline = time.monotonic() + timeout_s
        targets = [*self._kills, "worker"]
        self._rng.shuffle(targets)
        due = sorted(self._rng.uniform(0.0, 0.7) for _ in targets)
        self._wait_for_training(deadline)
        while self._driver.poll() is None:
            assert time.monotonic() < deadline, f"the sweep hangs after {self.killed}"
            time.sleep(0.1)
            if not targets or self._part_done() < due[len(self.killed)]:
                continue
            for target in targets:
                if self._driver.poll() is None and self._kills[target]():
                    self.killed.append(target)
                    targets.remove(target)
                    break
        if not self._server.runs:
            self._server.start()
        assert self._driver.returncode == 0, f"{self.killed}: {self._said()}"
        subprocess.run(command(self._file, "--resume"), check=True, capture_output=True, timeout=300)

    def stop(self) -> None:
        """Leave nothing behind, whatever happened."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._driver.pid, signal.SIGKILL)
        self._driver.wait()

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        with (self._file.parent / "driver.log").open("ab") as log:
            return subprocess.Popen(
                command(self._file, *options), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _said(self) -> str:
        return (self._file.parent / "driver.log").read_text()[-4000:]

    def _wait_for_training(self, deadline: float) -> None:
        while not list(folder_of(self._file).path.glob("trials/*/checkpoints/last.pt")):
            assert self._driver.poll() is None, f"the sweep ended before it trained: {self._said()}"
            assert time.monotonic() < deadline, "training never began"
            time.sleep(0.05)

    def _part_done(self) -> float:
        """Of all trials' steps, those that their ledgers have."""
        trials = plan(load_sweep(self._file)).trials
        ledgers = [read_ledger(folder_of(self._file).trial(trial.trial_id).ledger) for trial in trials]
        steps = [max((r.step for r in ledger if isinstance(r, TrainProgress)), default=0) for ledger in ledgers]
        return sum(steps) / sum(trial.training.steps for trial in trials)

    def _kill_driver(self) -> bool:
        self._driver.send_signal(signal.SIGKILL)
        self._driver.wait()
        if not self._server.runs:
            self._server.start()  # a driver refuses to start without it
        self._driver = self._start("--resume")
        return True

    def _kill_worker(self) -> bool:
        ours = {process.pid for process in self._processes()}
        for ledger in folder_of(self._file).path.glob("trials/*/ledger.jsonl"):
            attempts = [record for record in read_ledger(ledger) if isinstance(record, AttemptStarted)]
            if attempts and not (ledger.parent / "DONE.json").exists() and attempts[-1].provenance["pid"] in ours:
                return self._hit(psutil.Process(attempts[-1].provenance["pid"]))
        return False

    def _kill_process(self, title: str) -> bool:
        victims = [process for process in self._processes() if _title(process).startswith(title)]
        return bool(victims) and self._hit(self._rng.choice(victims))

    def _hit(self, process: psutil.Process) -> bool:
        """Kill the process, or freeze it, so that the driver has to kill it."""
        self._signal = signal.SIGSTOP if self._signal == signal.SIGKILL else signal.SIGKILL
        try:
            process.send_signal(self._signal)
        except psutil.NoSuchProcess:
            return False
        return True

    def _kill_server(self) -> bool:
        if not self._processes():
            return False  # a driver that starts refuses to go on without it
        self._server.stop()
        time.sleep(1.0)
        self._server.start()
        return True

    def _processes(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._driver.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def command(file: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "dmray.sweep", str(file), *options]


def chaos_file(storage: Path, name: str, executor: str, server: Server) -> Path:
    tracking = {"log_every_steps": 50, "flush_every_s": 0.5, "mlflow_uri": server.uri}
    seeds = list(range(SEEDS[executor]))
    return sweep_file(
        storage, **CHANGES, seeds=seeds, name=name, tracking=tracking, resources={**RESOURCES, "executor": executor}
    )


def folder_of(file: Path) -> SweepFolder:
    sweep = load_sweep(file)
    return SweepFolder(Path(sweep.storage), sweep.name)


def recorded(file: Path, server: Server) -> tuple[object, object]:
    sweep = load_sweep(file)
    return science_of(folder_of(file), plan(sweep).trial_ids), points_of_trials(server.uri, f"dmray/{sweep.name}")
