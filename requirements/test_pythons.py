"""Install dmray for each Python of this machine and run the tests without Ray; `make test-pythons` calls it.

    python requirements/test_pythons.py [3.11 3.12 3.13] [--tests tests/models ...]

Each Python gets a virtual environment of its own (.venv-3.12) with the versions of constraints.txt, torch first. It is
made again when pyproject.toml or constraints.txt has changed. A Python is looked for on the PATH and among pyenv's.
One that is not here is named and is no failure, unless none is here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MARKERS = "not ray and not slow and not figures"
INSTALL_TIMEOUT_S = 3600.0
TESTS_TIMEOUT_S = 3 * 3600.0
_CLASSIFIER = re.compile(r'"Programming Language :: Python :: (3\.\d+)"')


def main(arguments: Sequence[str] | None = None, repository: Path = REPOSITORY) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="*", help="for example 3.12; default: the classifiers of pyproject.toml")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files or folders of tests; default: all")
    given = parser.parse_args(arguments)
    versions = given.versions or classified((repository / "pyproject.toml").read_text(encoding="utf-8"))
    outcomes = {version: _try(version, given.tests, repository) for version in versions}
    for version, outcome in outcomes.items():
        print(f"Python {version}: {outcome}")
    here = [outcome for outcome in outcomes.values() if outcome != NOT_HERE]
    return int(not here or any(outcome != PASSED for outcome in here))


PASSED, NOT_HERE = "passed", "NOT TESTED: it is not on this machine"


def classified(pyproject: str) -> list[str]:
    """The Python versions that the classifiers of pyproject.toml name."""
    return _CLASSIFIER.findall(pyproject)


def candidates(version: str) -> Iterable[Path]:
    """Where an interpreter of that version may be: on the PATH, then among pyenv's, the newest first."""
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for folder in sorted(root.glob(f"{version}.*"), key=lambda path: _patch(path.name), reverse=True):
        yield folder / "bin" / "python"


def find(version: str) -> Path | None:
    """The first interpreter that runs and is of that version. (pyenv's shims exist for versions that do not run.)"""
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in candidates(version):
        done = subprocess.run([path, "-c", ask], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return path
    return None


def _patch(name: str) -> int:
    digits = re.match(r"\d+\.\d+\.(\d+)", name)
    return int(digits[1]) if digits else -1


def _try(version: str, tests: Sequence[str], repository: Path) -> str:
    python = find(version)
    if python is None:
        return NOT_HERE
    try:
        environment = _installed(python, version, repository)
        command = [environment / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider", "-m", MARKERS, *tests]
        status = subprocess.run(command, cwd=repository, timeout=TESTS_TIMEOUT_S, check=False).returncode
    except subprocess.CalledProcessError as failed:
        return f"FAILED: {' '.join(map(str, failed.cmd))}"
    except subprocess.TimeoutExpired as late:
        return f"FAILED: not done after {late.timeout:,.0f} s"
    return PASSED if status == 0 else f"FAILED: pytest ended with {status}"


def _installed(python: Path, version: str, repository: Path) -> Path:
    """The virtual environment of that version, with dmray and what its tests need."""
    environment, files = (
        repository / f".venv-{version}",
        (repository / "pyproject.toml", repository / "constraints.txt"),
    )
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    ready = environment / ".ready"
    if ready.exists() and ready.read_text(encoding="ascii") == digest:
        return environment
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["-c", "constraints.txt"]
    for command in ([python, "-m", "venv", environment], [*pip, "torch"], [*pip, "-e", ".[dev]"]):
        subprocess.run(command, cwd=repository, timeout=INSTALL_TIMEOUT_S, check=True)
    ready.write_text(digest, encoding="ascii")
    return environment


if __name__ == "__main__":
    sys.exit(main())
