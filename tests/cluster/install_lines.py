"""The `pip install` lines of a Dockerfile; as a program, resolves them in a fresh virtual environment.

    python -m tests.cluster.install_lines docker/Dockerfile docker/Dockerfile.gpu

Not a test: it reads from package indexes for minutes. Nothing is installed. Index addresses are left out, so that the
indexes are those that pip is configured for. What builds without isolation, which needs torch, is resolved in the
environment of this program, and its CUDA extensions are described, not compiled.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import venv
from pathlib import Path


def installs(dockerfile: Path) -> list[list[str]]:
    """The arguments of each `pip install`."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text())
    lines = [command for line in text.splitlines() if line.startswith("RUN ") for command in line[4:].split("&&")]
    return [words[2:] for line in lines if (words := shlex.split(line))[:2] == ["pip", "install"]]


def resolve(dockerfile: Path) -> None:
    """Dry-run each line; raises CalledProcessError at the first that pip cannot resolve."""
    describe_only = {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "CAUSAL_CONV1D_SKIP_CUDA_BUILD": "TRUE"}
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        for arguments in installs(dockerfile):
            words = _without_indexes(arguments)
            print("pip install", *words, flush=True)
            python = sys.executable if "--no-build-isolation" in words else f"{folder}/bin/python"
            command = [python, "-m", "pip", "install", "--dry-run", "--quiet", *words]
            subprocess.run(command, check=True, env=os.environ | describe_only)


def _without_indexes(arguments: list[str]) -> list[str]:
    kept, skip = [], False
    for word in arguments:
        if not skip and not word.endswith("index-url"):
            kept.append(word)
        skip = word.endswith("index-url")
    return kept


if __name__ == "__main__":
    for name in sys.argv[1:]:
        resolve(Path(name))
