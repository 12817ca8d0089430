"""The code, versions and hardware of a run. What cannot be found out is None, never a guess."""

from __future__ import annotations

import ast
import hashlib
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from dmray.files import cache_folder, write_atomic
from dmray.plugins import installed_plugins
from dmray.processes import usable_cpus

_PACKAGES = (
    *("dmray", "torch", "ray", "mlflow", "numpy", "mamba-ssm"),
    *("mujoco", "gymnasium", "envpool", "pybullet", "gym", "d4rl"),  # a score holds for a release of its simulator
)
DECIDE_NUMBERS = (  # the code that weights and scores depend on, beside the versions in `dmray.records.identity`
    *(
        "fields.py",
        "models",
        "methods",
        "specs",
        "tasks",
        "datasets",
        "policies",
        "training",
        "packs",
        "rollout",
        "trial",
    ),
)
_DRAW = ("rollout/film.py", "rollout/pictures.py")  # they change no number
_SOURCE = Path(__file__).resolve().parent.parent
_EMPTY_LIST = re.compile(r"(, )?\w+=\[\]")  # Python's versions differ in the empty lists that `ast.dump` shows
_TIMEOUT_S = 10.0


def provenance() -> dict[str, Any]:
    """JSON-able: `git` (commit, dirty), `code`, `versions`, `hardware` (cpu, cores, memory_gib, gpu), `hostname`.

    `code` is `code_digest()`.
    Found out once per process; imports none of the packages it names.
    """
    return {
        "git": dict(_git()),
        "code": code_digest(),
        "versions": dict(_versions()),
        "hardware": dict(_hardware()),
        "hostname": socket.gethostname() or None,
    }


@cache
def code_digest() -> str | None:
    """A digest of what the code in `DECIDE_NUMBERS` does: comments, docstrings and messages do not change it.

    Parsing takes 0.2 s, so the digest is kept in the cache folder under a digest of the files' bytes. None if the
    source is not there (an installation of bytecode only).
    """
    folders = [_SOURCE / name for name in DECIDE_NUMBERS]
    files = sorted(file for path in folders for file in ([path] if path.suffix else path.rglob("*.py")))
    try:
        names = {file.relative_to(_SOURCE).as_posix(): file for file in files}
        sources = {name: file.read_bytes() for name, file in names.items() if name not in _DRAW}
        made_by = Path(__file__).read_bytes()
    except OSError:
        return None
    if not sources:
        return None
    content = hashlib.sha256(repr([platform.python_version(), made_by, *sorted(sources.items())]).encode()).hexdigest()
    kept = cache_folder() / "code" / f"{content[:32]}.txt"
    with suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{64}", digest := kept.read_text(encoding="ascii")):
            return digest
    digest = digest_of_code(sources)
    with suppress(OSError):  # a cache folder that cannot be written costs 0.2 s a process
        write_atomic(kept, digest.encode())
    return digest


def digest_of_code(sources: Mapping[str, bytes]) -> str:
    """The SHA-256 (hex) of the syntax trees of source files, by name, without docstrings and messages."""
    found = hashlib.sha256()
    for name, source in sorted(sources.items()):
        tree = ast.parse(source)
        for node in ast.walk(tree):
            match node:
                case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    if ast.get_docstring(node, clean=False) is not None:
                        node.body = node.body[1:]
                case ast.Raise(exc=ast.Call(func=kind)):
                    node.exc = kind
                case ast.Call(func=ast.Attribute(value=ast.Name(id="_log"))):
                    node.args = []
        found.update(f"{name}\0{_EMPTY_LIST.sub('', ast.dump(tree))}\0".encode(errors="surrogatepass"))
    return found.hexdigest()


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
    named = {name: version_of(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **named, **installed_plugins()}


def version_of(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _hardware() -> dict[str, Any]:
    return {"cpu": _cpu_model(), "cores": usable_cpus(), "memory_gib": _memory_gib(), "gpu": _gpu_name()}


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
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", errors="replace").strip()
