from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dmray.coordination.sweep_lock import Heartbeat, LockTiming, find_driver, folder_lock
from dmray.errors import StorageError
from dmray.records import SweepFolder
from tests.coordination.heartbeats import heartbeat_of, leave_heartbeat
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(300)  # a lock that is never free is waited for as long as `stale_s`

FAST = LockTiming(heartbeat_s=0.1, stale_s=1.0)
HOLD = """
import sys, time
from pathlib import Path
from dmray.coordination.sweep_lock import LockTiming, folder_lock
from dmray.records import SweepFolder
with folder_lock(SweepFolder(Path(sys.argv[1]), "tiny"), LockTiming(heartbeat_s=0.1, stale_s=1.0)):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path, "tiny")
    folder.make_writable()
    return folder


def test_a_second_driver_is_refused_until_the_first_is_killed(
    folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(StorageError, match=f"process {first.pid} on .* runs this sweep already"),
            folder_lock(folder),
        ):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert (folder.path / ".driver.json").exists(), "a killed driver leaves its heartbeat"
    monkeypatch.setattr("dmray.coordination.sweep_lock.time.sleep", _refuse_to_wait)
    with folder_lock(folder):  # its process is gone from this machine, so nothing is waited for
        pass


def _refuse_to_wait(seconds: float) -> None:
    assert seconds == 0, "the heartbeat of a process that is gone is watched"


def test_a_sweep_whose_heartbeat_does_not_change_is_taken_over_with_a_warning(
    folder: SweepFolder, caplog: pytest.LogCaptureFixture
) -> None:
    leave_heartbeat(folder, host="elsewhere")
    with caplog.at_level(logging.WARNING), folder_lock(folder, FAST):
        pass
    assert "elsewhere" in caplog.text
    assert "taking the sweep over" in caplog.text


def test_a_changing_heartbeat_of_another_machine_is_respected_whatever_its_clock_says(folder: SweepFolder) -> None:
    leave_heartbeat(folder, host="elsewhere")
    code = (
        "import sys, time; from tests.coordination.heartbeats import leave_heartbeat\n"
        "from dmray.records import SweepFolder\n"
        "from pathlib import Path\n"
        "for count in range(6000): leave_heartbeat(SweepFolder(Path(sys.argv[1]), 'tiny'), 'elsewhere', count + 1);"
        " time.sleep(0.1)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder.storage)]) as other:
        try:
            with pytest.raises(StorageError, match="on elsewhere"), folder_lock(folder, LockTiming(0.1, 120.0)):
                pass
        finally:
            other.kill()


def test_a_driver_renews_its_heartbeat_and_removes_it_at_the_end(folder: SweepFolder) -> None:
    file = folder.path / ".driver.json"
    with folder_lock(folder, LockTiming(heartbeat_s=0.01)):
        first = Heartbeat.model_validate_json(file.read_bytes())
        wait_until(lambda: Heartbeat.model_validate_json(file.read_bytes()).count > first.count)
        assert Heartbeat.model_validate_json(file.read_bytes()).holder == first.holder
    assert not file.exists()


def test_a_driver_whose_sweep_was_taken_over_stops(folder: SweepFolder) -> None:
    def drive() -> None:
        with folder_lock(folder, LockTiming(heartbeat_s=0.05)):
            for _ in range(500):  # the other driver renews it too, so a write of this one cannot hide it for long
                leave_heartbeat(folder, host="elsewhere")
                threading.Event().wait(0.1)

    with pytest.raises(KeyboardInterrupt):
        drive()
    assert (folder.path / ".driver.json").exists(), "it belongs to the other driver now"


def test_a_process_with_the_same_id_is_not_the_driver_if_it_started_later_or_in_another_container(
    folder: SweepFolder,
) -> None:
    assert heartbeat_of("here").process_state() == "running"
    assert heartbeat_of("here", started="0").process_state() == "gone"
    assert heartbeat_of("here", machine="the same host name").process_state() == "elsewhere"
    leave_heartbeat(folder, "here", started="0")
    with folder_lock(folder, LockTiming(stale_s=600.0)):  # nothing to wait for
        pass


def test_a_stopped_driver_is_told_from_a_slow_and_a_dead_one(folder: SweepFolder, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        beats = (folder.path / ".driver.json").read_bytes()
        first.send_signal(signal.SIGSTOP)
        wait_until(lambda: Heartbeat.model_validate_json(beats).process_state() == "stopped")
        driver = find_driver(folder)
        assert driver is not None
        assert (driver.state, driver.alive) == ("stopped", True)
        assert f"kill -CONT {first.pid}, or end it with kill -9 {first.pid}" in str(driver)
        with pytest.raises(StorageError, match=f"is stopped .*kill -9 {first.pid}"), folder_lock(folder):
            pass
        first.kill()
        first.wait()
    driver = find_driver(folder)
    assert driver is not None
    assert (driver.state, driver.alive) == ("dead", False)
    leave_heartbeat(folder, "here", up_s=0.0)
    driver = find_driver(folder)
    assert driver is not None
    assert (driver.state, driver.alive) == ("slow", True)
    assert "has renewed no heartbeat for" in str(driver)


@pytest.mark.parametrize("hours", [-1000, 1000])
def test_a_wall_clock_that_jumps_makes_no_driver_of_this_machine_old(folder: SweepFolder, hours: int) -> None:
    leave_heartbeat(folder, "here", time_s=time.time() + 3600 * hours)
    driver = find_driver(folder)
    assert driver is not None
    assert driver.state == "running"
    assert driver.age_s < 3600


ODD = [
    {"pid": 2**70},
    {"pid": 0},
    {"pid": -1},
    {"time_s": 1e300},
    {"time_s": "x"},
    {"host": "a\x1b[31m"},
    {"count": -1},
]


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\x00", b"{" * 10_000, *ODD], ids=repr)
def test_what_is_no_heartbeat_is_treated_as_absent(folder: SweepFolder, content: bytes | dict[str, object]) -> None:
    if isinstance(content, dict):
        content = json.dumps(heartbeat_of("here").model_dump() | content).encode()
    (folder.path / ".driver.json").write_bytes(content)
    assert find_driver(folder) is None
    with folder_lock(folder):
        assert find_driver(folder) is not None


def test_a_folder_in_the_place_of_the_heartbeat_is_named(folder: SweepFolder) -> None:
    (folder.path / ".driver.json").mkdir()
    with pytest.raises(StorageError, match=r"\.driver\.json: is not a file"), folder_lock(folder):
        pass
