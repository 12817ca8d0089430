"""The checks of `python -m dmray.doctor`. Each one tries the thing that it checks."""

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
from dmray.mlflow_mirror.opening import probe
from dmray.planning.calibration import hardware_name, load_calibration
from dmray.records import provenance
from dmray.redaction import without_secrets
from dmray.rollout import make_engine
from dmray.rollout.film import Clip, write_strips
from dmray.space import free_bytes
from dmray.tasks import FAMILIES, TASKS

_GIB = 2**30
_MIN_FREE_GIB = 5.0


@dataclass(frozen=True)
class Finding:
    """The result of one check. `detail`: what was found, or what is missing and how to install it.

    The status "optional" means that it is missing, but that only some sweeps need it.
    """

    name: str
    status: Literal["ok", "missing", "optional"]
    detail: str


def diagnose(storage: Path, mlflow_uri: str | None) -> Iterator[Finding]:
    """Run all checks. Nothing is changed or downloaded."""
    yield from _machine(storage)
    yield from _packages()
    yield from _scans()
    yield from _engines()
    yield _rendering()
    yield _calibration()
    if mlflow_uri:
        yield _try("MLflow", lambda: probe(mlflow_uri), f"{without_secrets(mlflow_uri)} answers")


def _machine(storage: Path) -> Iterator[Finding]:
    hardware = provenance()["hardware"]
    yield Finding("processor", "ok", f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB")
    if hardware["gpu"] is None:
        yield Finding("GPU", "optional", "none; sweeps with resources.gpus_per_trial need one")
    else:
        yield _gpu(hardware["gpu"])
    free = free_bytes(storage) / _GIB
    hint = "" if free >= _MIN_FREE_GIB else f", less than {_MIN_FREE_GIB:g}: choose another --storage"
    yield Finding("disk", "missing" if hint else "ok", f"{free:z.1f} GiB free at {storage}{hint}")


def _gpu(name: str) -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", "ok", f"{torch.cuda.device_count()} x {name}, CUDA {torch.version.cuda}")
    return Finding("GPU", "missing", f"{name}, but this PyTorch cannot use it: install a CUDA build of torch")


def _packages() -> Iterator[Finding]:
    for name in ("torch", "ray", "mlflow", "mujoco", "envpool", "gymnasium", "numpy"):
        version = provenance()["versions"][name]
        yield Finding(name, "ok", version) if version else Finding(name, "missing", "pip install -e . installs it")


def _scans() -> Iterator[Finding]:
    """Run each scan backend once, on the device that it is for, and name the one that trials use."""
    import torch

    from dmray.models.selective_scan import SCAN_BACKENDS, scan_backend

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    used = [f"{scan_backend(torch.device(device), torch.float32)} on {device}" for device in devices]
    yield Finding("scan of trials", "ok", ", ".join(used))

    for name, load in SCAN_BACKENDS.items():
        device = "cpu" if name in {"reference", "numba"} else "cuda"
        if device == "cpu" or torch.cuda.is_available():
            ones = torch.ones(1, 2, 4, device=device)
            inputs = (ones, ones, -ones[0, 0].expand(4, 4), ones, ones, ones[0, 0], ones, ones[0, 0])
            yield _try(f"scan {name}", partial(lambda load, args: load()(*args, True), load, inputs), optional=True)


def _engines() -> Iterator[Finding]:
    """Build each simulator once, for one of its tasks."""
    by_engine = attrgetter("engine")
    for engine, group in groupby(sorted(FAMILIES.values(), key=by_engine), key=by_engine):
        families = list(group)
        build = partial(lambda task: make_engine(task, 1).close(), families[0].tasks[0])
        names = ", ".join(dict.fromkeys(family.name for family in families))
        optional = all(family.optional_packages for family in families)
        yield _try(f"simulator {engine}", build, names, optional=optional)


def _rendering() -> Finding:
    task = TASKS["maze2d-open"]
    with tempfile.TemporaryDirectory() as folder:
        still = [Clip(np.zeros((2, task.observation_dim), np.float32))]
        return _try("pictures", lambda: write_strips(task, still, [Path(folder) / "still.png"]), optional=True)


def _calibration() -> Finding:
    hardware = hardware_name()
    made = load_calibration(hardware)
    if made is None:
        return Finding(
            "calibration",
            "optional",
            "none for this hardware; --calibrate makes one, for the hours of --plan",
        )
    if made.busy is not None:
        return Finding("calibration", "optional", f"{hardware}, measured {made.made} on a busy machine: {made.busy}")
    return Finding("calibration", "ok", f"{hardware}, measured {made.made}")


def _try(name: str, action: Callable[[], object], detail: str = "works", optional: bool = False) -> Finding:
    try:
        action()
    except (DmrayError, ImportError, OSError, RuntimeError) as problem:
        return Finding(name, "optional" if optional else "missing", str(problem).splitlines()[0])
    return Finding(name, "ok", detail)
