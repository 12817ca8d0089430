"""How fast this hardware is: measured points, and the rule that carries them over to another trial's shape.

    seconds of a pass = a * layers + b * FLOPs

Small networks cost by their layers (calls, kernel launches), large ones by their FLOPs; `a` and `b` (not negative) are
what two measured shapes of the same backbone give. Good to a factor of two: it ignores what shares the machine, the
several trials of one GPU, and that kernels differ in how well they use it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from dmray.files import cache_folder, write_json
from dmray.methods import METHODS
from dmray.planning.cost import Work
from dmray.records import provenance
from dmray.specs import Spec, TrialSpec

Device = Literal["cpu", "cuda"]
VERSION = 1


class Point(Spec):
    """One shape, measured: `seconds` for one pass of `flops` through `layers`."""

    what: str
    flops: float
    layers: int
    seconds: float


class Calibration(Spec):
    """`training[device][backbone]`: optimizer steps; `decisions[backbone]`: window decoding on one CPU thread;
    `env_step_s[engine]`: seconds of one step of one episode, on one CPU."""

    version: Literal[1] = 1
    hardware: str
    made: str
    training: Mapping[Device, Mapping[str, tuple[Point, ...]]]
    decisions: Mapping[str, tuple[Point, ...]]
    env_step_s: Mapping[str, float]


def backbone_of(trial: TrialSpec) -> str:
    """The name of the backbone, by which rates are measured and found."""
    return METHODS[trial.method].backbone.name


def seconds_of(points: tuple[Point, ...], work: Work) -> float:
    """Seconds that `work` would take by the module's rule, from one point or two."""
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
    """The machine in words, by which its calibration is found again."""
    found = hardware or provenance()["hardware"]
    return f"{found['cpu']}, {found['cores']} cores, {found['gpu'] or 'no GPU'}"


def calibration_file(hardware: str) -> Path:
    """In `dmray.files.cache_folder`, one file for each hardware."""
    return cache_folder() / "calibration" / f"{re.sub(r'[^A-Za-z0-9]+', '-', hardware).strip('-').lower()}.json"


def load_calibration(hardware: str) -> Calibration | None:
    """What was measured on such hardware; None when nothing was, or by another version."""
    try:
        return Calibration.model_validate(json.loads(calibration_file(hardware).read_bytes()))
    except (FileNotFoundError, ValidationError, json.JSONDecodeError):
        return None


def save_calibration(calibration: Calibration) -> Path:
    file = calibration_file(calibration.hardware)
    write_json(file, calibration.model_dump(mode="json"))
    return file
