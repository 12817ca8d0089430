"""The metadata of a Minari data set, checked before `minari` acts on them.

`minari` makes the environment that the metadata name when they have no spaces, and arrays as large as they say.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmray.errors import DatasetError
from dmray.escaping import printable

_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_MOST_BYTES = 16 * 2**20
_MOST_EPISODES, _MOST_STEPS = 10**7, 10**11
_MOST_DIM = 100_000


@dataclass(frozen=True)
class MinariMetadata:
    """What dmray uses of the metadata."""

    data_format: str
    total_episodes: int
    total_steps: int
    observation_dim: int
    action_dim: int
    reference_minimum: float | None
    reference_maximum: float | None


def check_dataset_id(dataset_id: str) -> None:
    """Check that the id names a folder below that of all data sets.

    Raises:
        DatasetError: it has other parts than names, such as `..`.
    """
    if not all(_PART.fullmatch(part) for part in dataset_id.split("/")):
        raise DatasetError(
            f"Minari data set '{dataset_id}': an id is made of names and '/', such as mujoco/hopper/expert-v0"
        )


def read_metadata(dataset_id: str, file: Path) -> MinariMetadata:
    """The metadata in `file`.

    Raises:
        DatasetError: observations or actions are not flat.
        ValueError: the file is missing, damaged, or has values of another type; the message names the key.
    """
    given = _json(file)
    for key in ("env_spec", "eval_env_spec"):
        if not isinstance(given.get(key), str | None):
            raise ValueError(f"{key} is {_shown(given[key])}, not text")
    minimum, maximum = (_number(given, key) for key in ("ref_min_score", "ref_max_score"))
    if minimum is not None and maximum is not None and minimum >= maximum:
        raise ValueError(f"ref_min_score {minimum:g} is not below ref_max_score {maximum:g}")
    return MinariMetadata(
        data_format=_text(given, "data_format"),
        total_episodes=_count(given, "total_episodes", _MOST_EPISODES),
        total_steps=_count(given, "total_steps", _MOST_STEPS),
        observation_dim=_flat_dim(dataset_id, "observations", _space(given, "observation_space")),
        action_dim=_flat_dim(dataset_id, "actions", _space(given, "action_space")),
        reference_minimum=minimum,
        reference_maximum=maximum,
    )


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError("no such file")
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"has more than {_MOST_BYTES:,} bytes")
        return _object(file.read_bytes())
    except OSError as cause:
        raise ValueError(f"cannot be read: {cause.strerror}") from cause


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise ValueError(f"is not JSON ({' '.join(str(cause).split())})") from cause
    if not isinstance(given, dict):
        raise ValueError(f"is {_shown(given)}, not a JSON object")
    return given


def _space(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    try:
        return _object(_text(given, key))
    except ValueError as cause:
        raise ValueError(str(cause) if str(cause).startswith(key) else f"{key} {cause}") from cause


def _flat_dim(dataset_id: str, name: str, space: Mapping[str, Any]) -> int:
    kind, shape = space.get("type"), space.get("shape")
    if kind == "Dict":
        parts = space.get("subspaces")
        listed = printable(", ".join(map(str, parts))) if isinstance(parts, dict) else ""
        raise DatasetError(
            f"{dataset_id}: its {name} are a Dict ({listed}), the goal-conditioned layout of Minari's "
            "maze and kitchen sets. They are another protocol than D4RL's files and are not supported; "
            "use D4RL's file of the task"
        )
    if kind != "Box" or not isinstance(shape, list) or len(shape) != 1:
        what = f"{_shown(kind)} of shape {_shown(shape)}" if kind == "Box" else str(_shown(kind)).strip("'")
        raise DatasetError(f"{dataset_id}: its {name} are {what}; only rows of numbers (a flat Box) are supported")
    if type(shape[0]) is not int or not 0 < shape[0] <= _MOST_DIM:
        raise DatasetError(f"{dataset_id}: its {name} have {_shown(shape[0])} numbers a row, not 1 to {_MOST_DIM:,}")
    return shape[0]


def _text(given: Mapping[str, Any], key: str) -> str:
    value = given.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {_shown(value)}, not text" if key in given else f"{key} is missing")
    return value


def _count(given: Mapping[str, Any], key: str, most: int) -> int:
    value = given.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{key} is {_shown(value)}, not a number from 0 to {most:,}")
    return value


def _number(given: Mapping[str, Any], key: str) -> float | None:
    value = given.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or abs(value) > 1e30 or not math.isfinite(value):
        raise ValueError(f"{key} is {_shown(value)}, not a finite number")
    return float(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
