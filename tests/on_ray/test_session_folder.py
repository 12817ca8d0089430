"""Where the files of a sweep's own Ray are, and that those of dead drivers go. No test here starts Ray."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmray.errors import ClusterError
from dmray.on_ray import cluster, session_folder
from dmray.on_ray.session_folder import new_token, remove_dead_sessions
from tests.sweeps import tiny_plan


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name is short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="dmr", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def test_a_session_is_private_short_and_removed_at_its_end(short: Path) -> None:
    with session_folder.session_folder({"RAY_TMPDIR": str(short)}) as folder:
        assert folder.parent == short / f"dmray-{os.getuid()}"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(new_token(folder).stat().st_mode) == 0o600
        (folder / "session").mkdir()
        assert remove_dead_sessions(folder.parent) == [], "its driver is alive"
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["too long", "missing", "a file", "read only to others", "another user's"])
def test_an_unusable_temporary_folder_is_said_and_another_one_is_taken(
    short: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = short / ("x" * 80 if kind == "too long" else "place")
    if kind == "a file":
        place.touch()
    elif kind != "missing":
        place.mkdir()
    if kind == "read only to others":
        place = Path("/proc")
    if kind == "another user's":
        (place / f"dmray-{os.getuid()}").mkdir()
        (place / f"dmray-{os.getuid()}").chmod(0o777)
    with session_folder.session_folder({"TMPDIR": str(place), "XDG_RUNTIME_DIR": "/none"}) as folder:
        assert not folder.is_relative_to(place)
        assert len(f"{folder}/session_2026-11-26_16-46-14_426570_4194304/sockets/plasma_store") <= 103
    assert f"$TMPDIR ({place})" in caplog.text
    assert f"Ray's sockets and logs are in {folder.parent}" in caplog.text


def test_without_any_usable_folder_the_error_names_each_and_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_folder, "_unusable", lambda parent: "cannot be written (Read-only file system)")
    with pytest.raises(ClusterError, match=r"/tmp cannot be written .*; set RAY_TMPDIR to"):
        session_folder.session_folder({"TMPDIR": "/x"}).__enter__()


KILLED = """
import os, signal, sys
from dmray.on_ray.session_folder import session_folder
with session_folder({"RAY_TMPDIR": sys.argv[1]}) as folder:
    (folder / "logs").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_sweep_removes_what_a_killed_driver_left(short: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(short)], check=False)
    assert killed.returncode == -9
    parent = short / f"dmray-{os.getuid()}"
    (left,) = parent.iterdir()
    (parent / "not a session").mkdir()
    with session_folder.session_folder({"RAY_TMPDIR": str(short)}) as folder:
        assert not left.exists()
        assert folder.exists()
    assert [path.name for path in parent.iterdir()] == ["not a session"]


@pytest.mark.parametrize(
    ("address", "named", "message"),
    [
        ("ray://10.0.0.1:10001", None, "give the address of the dashboard, http://HOST:8265, to dmray submit"),
        ("http://127.0.0.1:8265", None, "to dmray submit"),
        ("10.0.0.1", None, "not an address; give auto, or HOST:PORT"),
        ("host:port", None, "not an address"),
        ("127.0.0.1:99999", None, "not an address"),
        ("", None, "not an address"),
        ("127.0.0.1:9", None, "no Ray cluster"),
        ("[::1]:9", None, "no Ray cluster"),
        ("x" * 300 + ":6379", None, "no Ray cluster"),
        ("auto", "127.0.0.1:9", "--address auto (RAY_ADDRESS=127.0.0.1:9): no Ray cluster"),
        ("auto", "ray://elsewhere:10001", "--address auto (RAY_ADDRESS=ray://elsewhere:10001): a driver joins"),
    ],
)
def test_an_address_that_no_driver_can_join_is_one_sentence(
    address: str, named: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", named)
    with pytest.raises(ClusterError) as refused:
        cluster._joined(address).__enter__()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_ray_that_does_not_start_is_one_sentence_with_the_cure(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)

    def does_not_start(*_: object, **options: object) -> None:
        log = Path(str(options["_temp_dir"])) / "session_2026" / "logs" / "gcs_server.err"
        log.parent.mkdir(parents=True)
        log.write_text("first\nbind: no free port\n")
        raise RuntimeError("Failed to get system config within timeout\nmore")

    monkeypatch.setattr(cluster.ray, "init", does_not_start)
    with pytest.raises(ClusterError) as refused, cluster.connected(None, tiny_plan(tmp_path)):
        pass
    message = str(refused.value)
    assert message.startswith("Ray does not start on this machine: Failed to get system config within timeout (")
    assert "bind: no free port" in message
    assert message.endswith("set RAY_TMPDIR to another folder, or use --local, which needs no Ray")
    assert "\n" not in message
    assert list((short / f"dmray-{os.getuid()}").iterdir()) == []


def test_a_ray_that_is_too_slow_to_start_is_started_once_more(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    starts: list[Path] = []

    def init(*_: object, _temp_dir: str, **__: object) -> None:
        starts.append(Path(_temp_dir))
        if len(starts) == 1:
            raise Exception("The current node timed out during startup.")
        raise Exception("The port is taken.")

    monkeypatch.setenv("RAY_TMPDIR", str(short))
    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(ClusterError, match=r"does not start on this machine: The port is taken \("):
        cluster._started(tiny_plan(short)).__enter__()
    assert len(starts) == 2
    assert starts[0] == starts[1]
    assert not starts[0].exists()


def test_the_handler_of_sigterm_is_the_same_after_ray_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def shutdown() -> None:  # as Ray's logging in C++
        default = bytes(cluster._SigtermAction._SIZE)
        cluster._SigtermAction()._set(int(signal.SIGTERM), default, None)

    monkeypatch.setattr(cluster.ray, "shutdown", shutdown)
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        before = cluster._SigtermAction()
        cluster._end()
        assert before.is_kept()
    finally:
        signal.signal(signal.SIGTERM, handler)
