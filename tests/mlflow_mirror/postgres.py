"""A real PostgreSQL for tests, gone with all its files afterwards."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from types import TracebackType

from tests.mlflow_mirror.mlflow_server import free_port

_OWNER = "nobody"  # PostgreSQL refuses to run as root


class Postgres:
    """Trusts everybody on loopback; keeps nothing safe from a power cut."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="pg", dir="/tmp")  # a Unix socket's path must be short
        self._port = free_port()
        self.uri = f"postgresql+psycopg2://dmray@127.0.0.1:{self._port}/postgres"

    @staticmethod
    def missing() -> str | None:
        """Why it cannot be run here."""
        programs = ["initdb", "postgres", *(["setpriv"] if os.getuid() == 0 else [])]
        absent = [program for program in programs if shutil.which(program) is None]
        if importlib.util.find_spec("psycopg2") is None:
            absent.append("psycopg2")
        return f"no PostgreSQL: {', '.join(absent)} is missing" if absent else None

    def __enter__(self) -> Postgres:
        if os.getuid() == 0:
            shutil.chown(self._folder, _OWNER)
        data = f"{self._folder}/data"
        subprocess.run(
            self._command("initdb", "-D", data, "-A", "trust", "-U", "dmray", "--no-sync"),
            check=True,
            capture_output=True,
        )
        settings = ["listen_addresses=127.0.0.1", f"unix_socket_directories={self._folder}", "fsync=off"]
        options = [word for setting in settings for word in ("-c", setting)]
        self._process = subprocess.Popen(
            self._command("postgres", "-D", data, "-p", str(self._port), *options),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait_until_it_answers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGINT)  # SIGTERM would wait for connections that pools keep open
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _command(self, program: str, *arguments: str) -> list[str]:
        """Not by the name alone: another user's PATH may be another."""
        as_owner = ["setpriv", f"--reuid={_OWNER}", "--clear-groups"] if os.getuid() == 0 else []
        return [*as_owner, str(shutil.which(program)), *arguments]

    def _wait_until_it_answers(self) -> None:
        import psycopg2

        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg2.connect(host="127.0.0.1", port=self._port, user="dmray", dbname="postgres").close()
                return
            except psycopg2.OperationalError:
                assert time.monotonic() < deadline, "PostgreSQL did not start"
                time.sleep(0.1)
