"""A sweep that is submitted to a cluster of two machines, paused, resumed, and loses a machine.

The machines are two of `ray start` with a home, a temporary folder and a working folder of their own; the storage is
the only folder that they share. Ray asks for its token, as on the clusters of docs/cluster.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest

from dmray.driver.local_runner import LocalRunner
from dmray.on_ray.placement import DRIVER_RESOURCE
from dmray.progress.trial_status import TrialStatus, trial_statuses
from dmray.records import AttemptPaused, AttemptStarted, SweepFolder, read_ledger
from tests.mlflow_mirror.mlflow_server import free_port
from tests.sweeps import science_of, sweep_file, tiny_plan
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(1800)]
REPOSITORY = Path(__file__).parents[2]
TOKEN = "a-token-of-this-test-0123456789abcdef"
AGENT_PORTS = (
    "metrics-export-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "runtime-env-agent-port",
)
CHANGES: dict[str, Any] = {
    "training": {"steps": 3000, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
    "evaluation": {"episodes": 4, "every_steps": 1500, "cohort_size": 2, "target_returns": [50.0]},
    # one trial fills a machine, beside the evaluation actor
    "resources": {"executor": "tune", "cpus_per_trial": 1.5, "cpus_per_evaluation_actor": 0.5, "evaluation_actors": 1},
    "faults": {"checkpoint_every_steps": 50},
}


class Machine:
    """One of the cluster, a `ray start` with folders of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._home = folder / "home"
        self._home.mkdir(parents=True)
        ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats"]
        self._command = [*ray, "--num-cpus=2", "--num-gpus=0", *options]
        self.start()

    def start(self) -> None:
        # Of ports that are not given, a raylet learns within 15 seconds or dies; on a busy machine that is too short.
        ports = [f"--{name}={free_port()}" for name in AGENT_PORTS]
        self.temporary = tempfile.mkdtemp(prefix="dmr", dir="/tmp")  # a short path: Unix sockets allow 107 bytes
        with (self._home / "output").open("a") as output:
            self._ray = subprocess.Popen(
                [*self._command, *ports, f"--temp-dir={self.temporary}"],
                env=environment(HOME=str(self._home)),
                cwd=self._home,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def keep_starting(self) -> None:
        """Start it again if Ray gave up, as it does after 30 seconds on a busy machine."""
        if self._ray.poll() is not None:
            self.dies()
            self.start()

    def dies(self) -> None:
        """End all of its processes at once, as a machine that loses its power."""
        processes = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid == self._ray.pid or any(self.temporary in word for word in process.cmdline()):
                    processes += [*process.children(recursive=True), process]  # workers have other command lines
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._ray.wait(timeout=30)
        shutil.rmtree(self.temporary, ignore_errors=True)


class TwoMachines:
    """The head and one worker; commands are given from elsewhere."""

    def __init__(self, folder: Path) -> None:
        port, dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        head = [f"--port={port}", f"--dashboard-port={dashboard}", f'--resources={{"{DRIVER_RESOURCE}": 10}}']
        self.head = Machine(folder / "head", "--head", "--dashboard-host=127.0.0.1", *head)
        self._machines = [self.head]
        try:
            wait_until(lambda: self._alive(self.head) == 1, timeout_s=240.0, every_s=0.5)
            self.worker = Machine(folder / "worker", f"--address=127.0.0.1:{port}")
            self._machines.append(self.worker)
            wait_until(lambda: self._alive(self.worker) == 2, timeout_s=240.0, every_s=0.5)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        for machine in reversed(self._machines):
            with contextlib.suppress(psutil.Error):
                machine.dies()

    def answer(self, path: str) -> Any:
        asked = Request(f"{self.address}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urlopen(asked, timeout=30) as answer:
            return json.load(answer)

    def _alive(self, starting: Machine) -> int:
        starting.keep_starting()
        with contextlib.suppress(OSError):
            nodes = self.answer("/nodes?view=summary")["data"]["summary"]
            return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)
        return 0

    def state_of(self, job: str) -> str:
        return str(self.answer(f"/api/jobs/{job}")["status"])


def environment(**more: str) -> dict[str, str]:
    """Of a machine: no folder of this test run's is in it, so that each machine has its own."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("DMRAY_", "RAY_"))}
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    return ours | paths | token | {"DMRAY_OFFLINE": "1", "RAY_health_check_period_ms": "500"} | more


def dmray(*words: str, **more: str) -> str:
    """What a command prints that is run in this terminal; it ends well unless the variables lack the token."""
    done = subprocess.run(
        [sys.executable, "-m", "dmray", *words],
        env=environment(**more),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (done.returncode == 0) == (more.get("RAY_AUTH_MODE") is None), done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[TwoMachines]:
    machines = TwoMachines(tmp_path / "machines")
    yield machines
    machines.end()


def test_a_submitted_sweep_survives_a_pause_and_the_loss_of_a_machine(cluster: TwoMachines, tmp_path: Path) -> None:
    here, there = (tiny_plan(tmp_path / name, **CHANGES) for name in ("local", "shared"))
    local, remote = (SweepFolder(tmp_path / name, "tiny") for name in ("local", "shared"))
    file = str(sweep_file(tmp_path / "laptop", **CHANGES))
    submission = ("submit", file, "--address", cluster.address, "--", "--storage", str(tmp_path / "shared"))
    sweep = str(remote.path)

    def records(kind: type) -> list[int]:
        """How many records of a kind each trial has."""
        ledgers = [remote.trial(trial).ledger for trial in there.trial_ids]
        return [sum(isinstance(r, kind) for r in read_ledger(path)) if path.exists() else 0 for path in ledgers]

    def until(condition: Any) -> None:
        def held() -> bool:
            if condition():
                return True
            state = cluster.state_of("dmray-tiny-1")
            assert state in ("PENDING", "RUNNING"), cluster.answer("/api/jobs/dmray-tiny-1/logs")["logs"]
            return False

        wait_until(held, timeout_s=240.0, every_s=0.2)

    assert "the cluster asks for its token" in dmray(*submission, RAY_AUTH_MODE="disabled")
    assert "dmray-tiny-1 runs at" in dmray(*submission)
    until(lambda: all(remote.trial(trial).last_checkpoint.exists() for trial in there.trial_ids))
    for machine in (cluster.head, cluster.worker):
        for folder in Path(machine.temporary).glob("session_2*/runtime_resources/working_dir_files/*"):
            shutil.rmtree(folder, ignore_errors=True)
    dmray("pause", sweep)
    until(lambda: records(AttemptPaused) == [1, 1])
    dmray("resume", sweep)
    until(lambda: records(AttemptStarted) == [2, 2])
    cluster.worker.dies()
    wait_until(lambda: cluster.state_of("dmray-tiny-1") not in ("PENDING", "RUNNING"), timeout_s=600.0, every_s=0.5)

    said = cluster.answer("/api/jobs/dmray-tiny-1/logs")["logs"]
    assert cluster.state_of("dmray-tiny-1") == "SUCCEEDED", said
    assert set(trial_statuses(there, remote).values()) == {TrialStatus.FINISHED}
    assert sorted(records(AttemptStarted)) == [2, 3], "one of the two trials lost its machine"
    LocalRunner().run(here, here.trials, local)
    assert science_of(remote, there.trial_ids) == science_of(local, here.trial_ids)
