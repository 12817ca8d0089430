"""Edges that end in each way an input can end: they prove that the harness finds what it looks for."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path
from random import Random
from typing import Any

from dmray.errors import SpecError
from tests.fuzz.harness import Edge


def prepare(folder: Path, edges: Collection[str]) -> None:
    """There is nothing to prepare."""


def _folder(rng: Random, folder: Path, templates: Any) -> Path:
    return folder


def _raise(error: BaseException) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        raise error

    return read


def _write_outside(folder: Path) -> object:
    outside = Path(os.environ["TMPDIR"]).parents[1] / f"dmray-fuzz-{os.getpid()}"
    outside.write_text("x")
    outside.unlink()
    return outside


READS: dict[str, Callable[[Path], object]] = {
    "value": lambda folder: 1,
    "error": _raise(SpecError("sweep.yaml: seeds: 'x' is not a number")),
    "traceback": _raise(KeyError("x")),
    "message": _raise(SpecError("")),
    "crash": lambda folder: os.abort(),
    "hang": lambda folder: time.sleep(1000),
    "memory": lambda folder: len(b"x" * (3 * 2**29)),
    "outside": _write_outside,
    "program": lambda folder: subprocess.run(["true"], check=True),
    "leftover": lambda folder: (folder / ".x.part").write_text("x"),
}
EDGES = {name: Edge(name, _folder, read) for name, read in READS.items()}
