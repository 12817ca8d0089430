"""Compiled code is kept where something can be written, and works where nothing can."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from numba.core.caching import InTreeCacheLocator, UserWideCacheLocator

from dmray.models import compiled as compiled_module

SOURCE = """
from dmray.models.compiled import compiled

@compiled()
def double(x):
    return 2 * x
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    file = tmp_path / "code" / "doubling.py"
    file.parent.mkdir()
    file.write_text(SOURCE)
    return file


def loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("doubling", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the code and the home folder cannot be written, for root neither."""
    for locator in (InTreeCacheLocator, UserWideCacheLocator):
        monkeypatch.setattr(locator, "get_cache_path", lambda self: "/proc/nowhere")


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nb[ic]"))


def test_code_is_kept_beside_its_source(module: Path) -> None:
    assert loaded(module).double(21) == 42
    assert len(kept(module.parent)) == 2
    again = loaded(module)
    assert again.double(21) == 42
    assert sum(again.double.stats.cache_hits.values()) == 1


@pytest.mark.usefixtures("read_only")
def test_where_code_and_home_cannot_be_written_it_is_kept_in_the_cache_folder(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "cache"))
    assert loaded(module).double(21) == 42
    assert len(kept(tmp_path / "cache" / "numba")) == 2


@pytest.mark.usefixtures("read_only")
def test_where_nothing_can_be_written_it_is_compiled_each_time_and_that_is_said_once(
    module: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DMRAY_CACHE", "/proc/nowhere")
    compiled_module._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [loaded(module).double(21) for _ in range(2)] == [42, 42]
    (message,) = caplog.messages
    assert "set DMRAY_CACHE" in message


@pytest.mark.parametrize("damage", [b"", b"\x80\x04", b"not a pickle"])
def test_a_damaged_file_is_compiled_again(module: Path, damage: bytes) -> None:
    assert loaded(module).double(21) == 42
    for suffix in (".nbc", ".nbi"):
        for file in kept(module.parent):
            if file.suffix == suffix:
                file.write_bytes(damage)
        assert loaded(module).double(21) == 42
    again = loaded(module)
    assert again.double(21) == 42
    assert sum(again.double.stats.cache_hits.values()) == 1, "and kept again"


def test_a_disk_that_is_full_keeps_nothing_and_stops_nothing(
    module: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: object, name: str, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_data", full)
    with caplog.at_level(logging.WARNING):
        assert loaded(module).double(21) == 42
    assert "No space left on device" in caplog.text


def test_code_of_another_version_of_its_own_module_is_not_used(module: Path) -> None:
    assert loaded(module).double(21) == 42
    module.write_text(SOURCE.replace("2 * x", "3 * x"))
    assert loaded(module).double(21) == 63


def test_code_of_another_version_of_an_inlined_module_is_not_used(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded(module).double(21) == 42
    monkeypatch.setattr(compiled_module, "_stamp", lambda: "another version")
    again = loaded(module)
    assert again.double(21) == 42
    assert sum(again.double.stats.cache_hits.values()) == 0


def test_without_a_home_folder_every_compiled_module_is_imported(tmp_path: Path) -> None:
    script = "import dmray.models.scan_numba, dmray.models.steps_numba, dmray.datasets.subgoals"
    environment = {"HOME": "/proc/nowhere", "DMRAY_CACHE": "/proc/nowhere", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
