from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dmray
from dmray.records import provenance
from dmray.records.provenance import DECIDE_NUMBERS, _output, code_digest, digest_of_code, version_of


def test_it_names_commit_versions_hardware_and_host() -> None:
    found = provenance()
    assert set(found) == {"git", "code", "versions", "hardware", "hostname"}
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["numpy"] is not None
    assert found["hardware"]["cores"] >= 1
    assert json.loads(json.dumps(found)) == found


def test_what_is_missing_is_none() -> None:
    assert version_of("no-such-package-at-all") is None
    assert _output("no-such-command-at-all") is None
    assert _output("false") is None


def test_a_caller_may_change_what_it_got() -> None:
    provenance()["versions"]["python"] = "0"
    assert provenance()["versions"]["python"] != "0"


def test_tracking_loads_neither_mlflow_nor_torch_nor_ray() -> None:
    code = "import sys, dmray.records as t; t.provenance(); print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_installed_plugins_are_named_with_their_versions(toy_plugin: None) -> None:
    code = "from dmray.records import provenance; print(provenance()['versions']['dmray-toy'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0.1.0\n"


def test_comments_docstrings_and_blank_lines_do_not_change_the_digest_of_code() -> None:
    code = b'"""A."""\n\ndef f(x):\n    """B."""\n    return x + 1  # c\n'
    plain = b"def f(x):\n\n\n    return x + 1\n"
    assert digest_of_code({"a.py": code}) == digest_of_code({"a.py": plain})
    assert digest_of_code({"a.py": code}) != digest_of_code({"a.py": code.replace(b"1", b"2")})
    assert digest_of_code({"a.py": code}) != digest_of_code({"b.py": code})


def test_messages_do_not_change_the_digest_of_code() -> None:
    code = b'def f(x):\n    _log.warning("a %s", x)\n    if x: raise ValueError(f"{x}: bad")\n    return x\n'
    other = code.replace(b"bad", b"not good").replace(b"a %s", b"b: %s")
    assert digest_of_code({"a.py": code}) == digest_of_code({"a.py": other})
    assert digest_of_code({"a.py": code}) != digest_of_code({"a.py": code.replace(b"ValueError", b"KeyError")})


def test_every_package_that_decides_numbers_is_in_the_digest() -> None:
    """Where a package is renamed, its code must not leave the digest in silence."""
    package = Path(dmray.__file__).parent
    assert [name for name in DECIDE_NUMBERS if not (package / name).exists()] == []
    assert {"models", "methods", "policies", "training", "rollout", "datasets", "tasks", "trial"} <= set(DECIDE_NUMBERS)


def test_the_digest_of_code_is_found_without_a_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = code_digest()
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "file"))
    code_digest.cache_clear()
    assert code_digest() == expected


def test_the_package_of_a_plugin_is_named_with_its_version(toy_plugin: None) -> None:
    code = (
        "from dmray.methods import METHODS\n"
        "brought = {name: METHODS.package_of(name) for name in METHODS}\n"
        "print(brought['dm'], sorted({each for each in brought.values() if each}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "None ['dmray-toy 0.1.0']\n"
