"""requirements/audit.py: what `make lint` says of pip-audit's answer."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "requirements/audit.py"
GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "own", "skip_reason": "Dependency not found on PyPI"}


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("dependencies", "said", "fails"),
    [
        ([GOOD, UNKNOWN], "no known vulnerability in 1 of 2 packages", False),
        ([GOOD, BAD], "bad 1.0: PYSEC-1, fixed in 1.1", True),
        ([UNKNOWN], "NOT CHECKED", False),
    ],
)
def test_a_known_vulnerability_fails_and_no_answer_is_said(
    dependencies: list[dict[str, Any]], said: str, fails: bool, audit: ModuleType
) -> None:
    text, found = audit.judge(dependencies)
    assert said in text
    assert found is fails


@pytest.mark.parametrize("error", ["", "Traceback: ConnectionError"])
def test_a_service_that_cannot_be_reached_fails_nothing(
    error: str, audit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], 1, stdout="", stderr=error)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)
    text, found = audit.audit(Path("constraints.txt"), [])
    assert text.startswith("pip-audit: NOT CHECKED")
    assert not found


def test_a_service_that_hangs_fails_nothing(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: Any, **kwargs: Any) -> None:
        raise subprocess.TimeoutExpired("pip-audit", 60)

    monkeypatch.setattr(subprocess, "run", hang)
    assert audit.audit(Path("constraints.txt"), []) == ("pip-audit: NOT CHECKED, no answer within 60 s", False)


def test_what_is_let_pass_has_a_reason(audit: ModuleType) -> None:
    assert audit.allowed("# a comment\nPYSEC-1  we never call it\n") == ["PYSEC-1"]
    with pytest.raises(SystemExit, match="PYSEC-2: write a reason"):
        audit.allowed("PYSEC-2\n")
    audit.allowed(audit.ALLOWED.read_text())
