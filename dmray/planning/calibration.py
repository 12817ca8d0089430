"""The measured speed of this hardware, and the formula that estimates other model sizes from it.

    seconds of a pass = a * layers + b * FLOPs

The time of small networks depends on their layers (calls, kernel launches), that of large ones on their FLOPs. `a` and
`b` (not negative) are computed from two measured sizes of the same backbone. An estimate is right to about a factor of
two: it does not consider other load on the machine, and different efficiency of kernels.

Calibrations of this machine are in the cache folder; those of other machines, for plans, are shipped in `hardware`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from dmray.errors import SpecError, StorageError
from dmray.files import as_storage_error, cache_folder, read_small, user_path, write_json
from dmray.methods import METHODS
from dmray.planning.cost import Work
from dmray.records import provenance
from dmray.registry import short, unknown
from dmray.specs import Spec, TrialSpec
from dmray.specs.mistakes import mistakes_of

_log = logging.getLogger(__name__)
Device = Literal["cpu", "cuda"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_SHIPPED = Path(__file__).parent / "hardware"  # one file for each kind of machine; its name is the short name
_LEAST_CPU_SHARE = 0.9
_MOST_LOAD = 0.5


class Point(Spec):
    """One measurement: `seconds` of one pass with `flops` through `layers` layers. `what` describes it for readers."""

    what: str
    flops: Positive
    layers: int = Field(ge=1)
    seconds: Positive


Points = Annotated[tuple[Point, ...], Field(min_length=1)]


class PackedPoint(Spec):
    """A measurement of packed trials on one GPU: all `trials` together take `rate` times the steps of one alone."""

    what: str
    trials: int = Field(ge=2, le=10_000)
    rate: Positive


class Calibration(Spec):
    """The measured speed of one kind of machine, and its size.

    `cpus`, `gpus`: of one such machine. `training[device][backbone]`: optimizer steps.
    `decisions[device][decode mode][backbone]`: actions of a cohort, without the simulator, by one process.
    `env_step_s[engine]`: seconds of one environment step of one episode on one CPU. `packed`: of one GPU; empty: not
    measured. `made`: date and time. `busy`: what else the machine did meanwhile (`--force`); None: nothing. `stand_in`:
    if not all of it was measured on this hardware: what was, and what stands in for the rest.
    """

    version: Literal[2] = 2
    hardware: str
    made: str
    cpus: int = Field(ge=1)
    gpus: int = Field(ge=0)
    training: Mapping[Device, Mapping[str, Points]]
    decisions: Mapping[Device, Mapping[str, Mapping[str, Points]]]
    env_step_s: Mapping[str, Positive]
    packed: tuple[PackedPoint, ...] = ()
    busy: str | None = None
    stand_in: str | None = None


def busy_reason(load: float, cpus: int, cpu_share: float | None = None) -> str | None:
    """Why measurements are not to be trusted; None: the machine was idle.

    `load`: the average number of processes that wanted a CPU before the measurement. `cpu_share`: CPU time divided by
    wall time of the measured sections, if they have run: less than 1 where others had the CPU.
    """
    if load > _MOST_LOAD * cpus:
        return f"other processes kept {load:z.1f} of {cpus} CPUs busy before the measurement"
    if cpu_share is not None and cpu_share < _LEAST_CPU_SHARE:
        return f"the measured process had a CPU for only {cpu_share:.0%} of the time"
    return None


def backbone_of(trial: TrialSpec) -> str:
    """The name of the trial's backbone, the key of `Calibration.training` and `Calibration.decisions`."""
    return METHODS[trial.method].backbone.name


def seconds_of(points: tuple[Point, ...], work: Work) -> float:
    """Estimate the seconds of `work` from one or two measurements, with the module's formula."""
    per_layer, per_flop = _rates(points)
    return per_layer * work.layers + per_flop * work.flops


def _rates(points: tuple[Point, ...]) -> tuple[float, float]:
    small, large = min(points, key=lambda p: p.flops), max(points, key=lambda p: p.flops)
    determinant = small.layers * large.flops - large.layers * small.flops
    if determinant == 0:
        return 0.0, large.seconds / large.flops
    per_layer = (small.seconds * large.flops - large.seconds * small.flops) / determinant
    per_flop = (small.layers * large.seconds - large.layers * small.seconds) / determinant
    if per_layer < 0:
        return 0.0, large.seconds / large.flops
    return (per_layer, per_flop) if per_flop >= 0 else (large.seconds / large.layers, 0.0)


def packed_rate(points: tuple[PackedPoint, ...], trials: int) -> float:
    """How many trials alone take as many steps as `trials` packed ones on one GPU: between the measured numbers.

    Without measurements 1.0: trials that share a GPU take turns.
    """
    known = {1: 1.0} | {point.trials: point.rate for point in sorted(points, key=lambda point: point.trials)}
    return float(np.interp(np.log(trials), np.log(list(known)), list(known.values())))


def hardware_name(hardware: Mapping[str, Any] | None = None) -> str:
    """The processor, its cores and the GPU as text. Calibrations are stored under this name. None: this machine."""
    found = hardware or provenance()["hardware"]
    return f"{found['cpu']}, {found['cores']} cores, {found['gpu'] or 'no GPU'}"


def calibration_file(hardware: str) -> Path:
    """The file of a calibration, in `dmray.files.cache_folder`."""
    return cache_folder() / "calibration" / f"{re.sub(r'[^A-Za-z0-9]+', '-', hardware).strip('-').lower()}.json"


def load_calibration(hardware: str) -> Calibration | None:
    """The stored calibration of this hardware; None if there is none. One that cannot be used is named in a warning."""
    try:
        file = calibration_file(hardware)
    except StorageError:  # there is no folder that could have one
        return None
    try:
        return _read(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (SpecError, OSError) as cause:
        problem = getattr(cause, "strerror", None) or cause
    _log.warning("%s is not used: %s; measure again with: python -m dmray.doctor --calibrate", file, problem)
    return None


def calibration_names() -> tuple[str, ...]:
    """The short names of the calibrations that are shipped, sorted."""
    return tuple(sorted(file.stem for file in _SHIPPED.glob("*.json")))


def calibration_of(name: str) -> Calibration:
    """A shipped calibration by its short name, or the one in a file that `dmray doctor --calibrate` has written.

    Raises:
        SpecError: there is none of that name (with the most similar one), or the file cannot be used.
    """
    is_file = name.endswith(".json") or "/" in name
    if not is_file and name not in calibration_names():
        raise SpecError(
            f"--on {short(name)}: {unknown('hardware', name, calibration_names())} (all: --on list); for other "
            "hardware give the .json file that python -m dmray.doctor --calibrate has written there"
        )
    try:
        return _read(user_path(name) if is_file else _SHIPPED / f"{name}.json")
    except (OSError, SpecError, StorageError) as cause:
        raise SpecError(f"--on {short(name)}: {getattr(cause, 'strerror', None) or cause}") from cause


def _read(file: Path) -> Calibration:
    """Raises: OSError: it cannot be read. SpecError: it is no calibration of this version."""
    try:
        return Calibration.model_validate_json(read_small(file))
    except ValidationError as invalid:
        raise SpecError(f"not a calibration of this version: {mistakes_of(invalid, Calibration)[0]}") from None


def save_calibration(calibration: Calibration) -> Path:
    """Store a calibration in `calibration_file`; returns the file.

    Raises:
        StorageError: it cannot be written.
    """
    file = calibration_file(calibration.hardware)
    with as_storage_error(file, "set DMRAY_CACHE to a folder that can be written"):
        write_json(file, calibration.model_dump(mode="json"))
    return file
