"""benchmarks/gpu/run.py is rehearsed on the CPU: on a GPU there are minutes only, once in a while."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu" / "run.py"


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_section_runs_at_toy_size_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--toy", "--device", "cpu", "--seconds", "300", "--out", str(tmp_path)]
    ended = subprocess.run([*command, "--only", "right"], capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert {name: section["status"] for name, section in sections.items()} == {"right": "done"}
    checks = [result for result in sections["right"]["results"] if "right" in result]
    assert len(checks) >= 15
    assert [result for result in checks if not result["right"]] == []
    assert [result for result in sections["right"]["results"] if "error" in result] == []


def test_a_section_that_fails_hangs_or_crashes_leaves_the_others_their_results(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_KILL_AFTER_S", 1.0)
    write = "import sys, json, time, os; open(sys.argv[2], 'w').write(json.dumps([{'what': 'first'}]))"

    def part(name: str, code: str) -> object:
        return runner.Part(name, (sys.executable, "-c", f"{write}; {code}"), 1.0)

    parts = [
        part("fails", "1 / 0"),
        part("crashes", "os.kill(os.getpid(), 11)"),
        part("hangs", "time.sleep(600)"),
        part("works", "print('hello')"),
    ]
    record = runner.run(parts, 4.0, tmp_path, [])
    statuses = {name: section["status"] for name, section in record["sections"].items()}
    assert statuses == {
        "fails": "exit status 1",
        "crashes": "exit status -11",
        "hangs": "killed: it took too long",
        "works": "done",
    }
    assert all(section["results"] == [{"what": "first"}] for section in record["sections"].values())
    assert json.loads((tmp_path / "gpu.json").read_text()) == record
    assert "hello" in (tmp_path / "log.txt").read_text()


def test_an_unknown_section_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--only", "rigth", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "there are right, one_trial" in ended.stderr
