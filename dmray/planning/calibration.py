"""The measured speed of this hardware, and the formula that estimates other model sizes from it.

    seconds of a pass = a * layers + b * FLOPs

The time of small networks depends on their layers (calls, kernel launches), that of large ones on their FLOPs. `a` and
`b` (not negative) are computed from two measured sizes of the same backbone. An estimate is right to about a factor of
two: it does not consider other load on the machine, several trials on one GPU, and different efficiency of kernels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from dmray.errors import StorageError
from dmray.files import as_storage_error, cache_folder, read_small, write_json
from dmray.methods import METHODS
from dmray.planning.cost import Work
from dmray.records import provenance
from dmray.specs import Spec, TrialSpec
from dmray.specs.mistakes import mistakes_of

_log = logging.getLogger(__name__)
Device = Literal["cpu", "cuda"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
VERSION = 1


class Point(Spec):
    """One measurement: `seconds` of one pass with `flops` through `layers` layers. `what` describes it for readers."""

    what: str
    flops: Positive
    layers: int = Field(ge=1)
    seconds: Positive


Points = Annotated[tuple[Point, ...], Field(min_length=1)]


class Calibration(Spec):
    """The measured speed of one kind of machine.

    `training[device][backbone]`: optimizer steps. `decisions[backbone]`: window decoding on one CPU thread.
    `env_step_s[engine]`: seconds of one environment step of one episode on one CPU. `made`: date and time.
    """

    version: Literal[1] = 1
    hardware: str
    made: str
    training: Mapping[Device, Mapping[str, Points]]
    decisions: Mapping[str, Points]
    env_step_s: Mapping[str, Positive]


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
    if determinant <= 0:
        return 0.0, large.seconds / large.flops
    per_layer = (small.seconds * large.flops - large.seconds * small.flops) / determinant
    per_flop = (small.layers * large.seconds - large.layers * small.seconds) / determinant
    if per_layer < 0:
        return 0.0, large.seconds / large.flops
    return (per_layer, per_flop) if per_flop >= 0 else (large.seconds / large.layers, 0.0)


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
        return Calibration.model_validate_json(read_small(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as invalid:
        problem = str(mistakes_of(invalid, Calibration)[0])
    except OSError as cause:
        problem = str(cause.strerror)
    _log.warning("%s is not used: %s; measure again with: python -m dmray.doctor --calibrate", file, problem)
    return None


def save_calibration(calibration: Calibration) -> Path:
    """Store a calibration in `calibration_file`; returns the file.

    Raises:
        StorageError: it cannot be written.
    """
    file = calibration_file(calibration.hardware)
    with as_storage_error(file, "set DMRAY_CACHE to a folder that can be written"):
        write_json(file, calibration.model_dump(mode="json"))
    return file
