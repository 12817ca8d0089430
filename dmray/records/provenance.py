"""The code, versions and hardware of a run. What cannot be found out is None, never a guess."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from dmray.plugins import installed_plugins

_PACKAGES = (
    *("dmray", "torch", "ray", "mlflow", "numpy", "mamba-ssm"),
    *("mujoco", "gymnasium", "envpool", "pybullet", "gym", "d4rl"),  # a score holds for a release of its simulator
)
_TIMEOUT_S = 10.0


def provenance() -> dict[str, Any]:
    """JSON-able: `git` (commit, dirty), `versions`, `hardware` (cpu, cores, memory_gib, gpu), `hostname`.

    Found out once per process; imports none of the packages it names.
    """
    return {
        "git": dict(_git()),
        "versions": dict(_versions()),
        "hardware": dict(_hardware()),
        "hostname": socket.gethostname() or None,
    }


@cache
def _git() -> dict[str, Any]:
    here = Path(__file__).resolve()
    tracked = _output("git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name)
    if not tracked:  # an installed copy may lie inside somebody else's repository
        return {"commit": None, "dirty": None}
    commit = _output("git", "-C", str(here.parent), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(here.parent), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "dirty": None if changes is None else bool(changes)}


@cache
def _versions() -> dict[str, str | None]:
    named = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **named, **installed_plugins()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _hardware() -> dict[str, Any]:
    return {"cpu": _cpu_model(), "cores": _cores(), "memory_gib": _memory_gib(), "gpu": _gpu_name()}


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_model() -> str | None:
    lines = _lines(Path("/proc/cpuinfo"))
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, None) or platform.processor() or None


def _memory_gib() -> float | None:
    kib = (line.split()[1] for line in _lines(Path("/proc/meminfo")) if line.startswith("MemTotal"))
    total = next(kib, None)
    return None if total is None else round(int(total) / 2**20, 1)


def _gpu_name() -> str | None:
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in _lines(information):
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    if shutil.which("nvidia-smi") is None:
        return None
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return names.splitlines()[0] if names else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _output(*command: str) -> str | None:
    """What the command prints; None when it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
