from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmray.errors import StorageError
from dmray.file_lock import file_lock

HOLD = """
import os, subprocess, sys, time
from pathlib import Path
from dmray.file_lock import file_lock
with file_lock(Path(sys.argv[1]), 10.0, "busy"):
    children = {"none": lambda: 0, "fork": os.fork, "spawn": lambda: subprocess.Popen(["sleep", "600"]).pid}
    child = children[sys.argv[2]]()
    if sys.argv[2] == "fork" and child == 0:
        time.sleep(600)
    print(child, flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(path: Path, child: str = "none") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds the lock, and the id of its own child."""
    command = [sys.executable, "-c", HOLD, str(path), child]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child_id = int(process.stdout.readline())
        try:
            yield process, child_id
        finally:
            process.kill()
            if child_id:
                os.kill(child_id, signal.SIGKILL)


def test_a_lock_that_another_process_holds_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    with holder(path):
        for timeout_s in (0.0, 0.2):
            with pytest.raises(StorageError, match=r"\.lock: process 5 runs it: stop it first$"):
                file_lock(path, timeout_s, "process 5 runs it: stop it first").__enter__()


@pytest.mark.parametrize("child", ["none", "fork", "spawn"])
def test_a_lock_ends_with_its_process_whatever_children_it_leaves(tmp_path: Path, child: str) -> None:
    path = tmp_path / ".lock"
    with holder(path, child) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        with file_lock(path, 30.0, "still held"):
            pass


def test_whoever_waits_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    path, order = tmp_path / ".lock", []

    def wait() -> None:
        with file_lock(path, 60.0, "busy"):
            order.append("second")

    with file_lock(path, 60.0, "busy"):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert path.read_bytes() == b""


def test_a_block_that_raises_releases_the_lock(tmp_path: Path) -> None:
    def fail() -> None:
        with file_lock(tmp_path / ".lock", 0.0, "busy"):
            raise OSError("its own")

    for _ in range(2):
        with pytest.raises(OSError, match="its own"):
            fail()


def test_a_lock_file_that_cannot_be_made_is_said_with_what_to_do() -> None:
    with pytest.raises(StorageError, match=r"/proc/nowhere/\.lock: cannot be locked \(.*\); set DMRAY_CACHE$"):
        file_lock(Path("/proc/nowhere/.lock"), 0.0, "busy", unwritable="set DMRAY_CACHE").__enter__()
