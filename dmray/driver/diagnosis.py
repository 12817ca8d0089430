"""What `python -m dmray.doctor` finds: each thing looked at is tried, not guessed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Literal

import numpy as np

from dmray.errors import DmrayError
from dmray.mlflow_mirror.opening import probe, without_secrets
from dmray.planning.calibration import hardware_name, load_calibration
from dmray.planning.disk_space import free_bytes
from dmray.records import provenance
from dmray.rollout import make_engine
from dmray.rollout.film import write_strips
from dmray.tasks import TASKS

_GIB = 2**30
_LEAST_FREE_GIB = 5.0


@dataclass(frozen=True)
class Finding:
    """`found` is what is there, or what is missing with its cure; "optional" is missing but not needed by all."""

    name: str
    verdict: Literal["ok", "missing", "optional"]
    found: str


def diagnose(storage: Path, mlflow_uri: str | None) -> Iterator[Finding]:
    """Look at everything; nothing is changed, and nothing downloaded."""
    yield from _machine(storage)
    yield from _packages()
    yield from _scans()
    yield from _engines()
    yield _rendering()
    yield _calibration()
    if mlflow_uri:
        yield _tried("MLflow", lambda: probe(mlflow_uri), f"{without_secrets(mlflow_uri)} answers")


def _machine(storage: Path) -> Iterator[Finding]:
    hardware = provenance()["hardware"]
    yield Finding("processor", "ok", f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB")
    if hardware["gpu"] is None:
        yield Finding("GPU", "optional", "none; sweeps with resources.gpus_per_trial need one")
    else:
        yield _gpu(hardware["gpu"])
    free = free_bytes(storage) / _GIB
    cure = "" if free >= _LEAST_FREE_GIB else f", less than {_LEAST_FREE_GIB:g}: choose another --storage"
    yield Finding("disk", "missing" if cure else "ok", f"{free:.1f} GiB free at {storage}{cure}")


def _gpu(name: str) -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", "ok", f"{torch.cuda.device_count()} x {name}, CUDA {torch.version.cuda}")
    return Finding("GPU", "missing", f"{name}, which this PyTorch cannot use: install a CUDA build of torch")


def _packages() -> Iterator[Finding]:
    for name in ("torch", "ray", "mlflow", "mujoco", "envpool", "gymnasium", "numpy"):
        version = provenance()["versions"][name]
        yield Finding(name, "ok", version) if version else Finding(name, "missing", "pip install -e . installs it")


def _scans() -> Iterator[Finding]:
    """Each backend computes a scan of ones where it belongs."""
    import torch

    from dmray.models import SCAN_BACKENDS

    for name, load in SCAN_BACKENDS.items():
        device = "cpu" if name in {"reference", "numba"} else "cuda"
        if device == "cpu" or torch.cuda.is_available():
            ones = torch.ones(1, 2, 4, device=device)
            inputs = (ones, ones, -ones[0, 0].expand(4, 4), ones, ones, ones[0, 0], ones, ones[0, 0])
            yield _tried(f"scan {name}", partial(lambda load, args: load()(*args, True), load, inputs), optional=True)


def _engines() -> Iterator[Finding]:
    """Each simulator is built once."""
    for engine, tasks in groupby(sorted(TASKS.values(), key=attrgetter("engine")), key=attrgetter("engine")):
        some = list(tasks)
        families = ", ".join(dict.fromkeys(task.family for task in some))
        build = partial(lambda task: make_engine(task, 1).close(), some[0])
        yield _tried(f"simulator {engine}", build, families, optional=engine == "bullet")


def _rendering() -> Finding:
    task = TASKS["maze2d-open"]
    with tempfile.TemporaryDirectory() as folder:
        still = [np.zeros((2, task.observation_dim), np.float32)]
        return _tried("pictures", lambda: write_strips(task, still, [Path(folder) / "still.png"]), optional=True)


def _calibration() -> Finding:
    hardware = hardware_name()
    made = load_calibration(hardware)
    if made is None:
        return Finding("calibration", "optional", "none of this hardware; --calibrate makes it, for the bill of --plan")
    return Finding("calibration", "ok", f"{hardware}, made {made.made}")


def _tried(name: str, action: Callable[[], object], found: str = "works", optional: bool = False) -> Finding:
    try:
        action()
    except (DmrayError, ImportError, OSError, RuntimeError) as problem:
        return Finding(name, "optional" if optional else "missing", str(problem).splitlines()[0])
    return Finding(name, "ok", found)
