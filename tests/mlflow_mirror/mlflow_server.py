"""A real MLflow server for tests, and what is in it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CLOCKS = ("time/", "system/", "train/steps_per_s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A real `mlflow server` on loopback."""

    def __init__(self, storage: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._database, self._artifacts = f"sqlite:///{storage / 'server.db'}", str(storage / "artifacts")
        self._log = storage / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--port", str(self.port), "-w", "1", "--backend-store-uri", self._database]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments, "--artifacts-destination", self._artifacts],
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_until(lambda: self._listens, "start")

    @property
    def runs(self) -> bool:
        return self._process is not None

    def stop(self) -> None:
        """Kill -9."""
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None
            self._wait_until(lambda: not self._listens, "stop")  # its children may take a moment longer

    @property
    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, f"the MLflow server did not {what}: {self._log.read_text()[-2000:]}"
            time.sleep(0.1)


def points_of_trials(uri: str, experiment: str) -> dict[str, Any]:
    """By run name: status, parameters, and the points of every metric that is no clock's, of trials and seed groups.

    Of a group it is the last point alone: the aggregate over four of six seeds depends on which four were done first.
    """
    import mlflow

    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id], max_results=1000)
    names = [(run.data.tags["dmray.level"], run.info.run_name) for run in runs]
    assert len(set(names)) == len(names), "a trial has two runs"
    first = {"trial": 0, "seed group": -1}
    return {
        f"{level} {name}": {
            "status": run.info.status,
            "params": run.data.params,
            "metrics": {
                key: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, key))[first[level] :]
                for key in run.data.metrics
                if not key.startswith(_CLOCKS)
            },
        }
        for (level, name), run in zip(names, runs, strict=True)
        if level != "sweep"
    }
