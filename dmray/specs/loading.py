"""Read sweep files. An error names the file, the field, the value and the most similar valid one."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dmray.errors import SpecError
from dmray.files import read_small
from dmray.registry import nearest, short
from dmray.specs.mistakes import mistakes_of
from dmray.specs.plain_values import plain_value
from dmray.specs.sweep import SweepSpec
from dmray.specs.yaml_values import MAX_CHARACTERS, MAX_DEPTH, YamlError, read_yaml

_MAX_BYTES = 4 * MAX_CHARACTERS  # a character has at most four bytes
_ITEM = re.compile(r"0|[1-9][0-9]{0,8}")


def load_sweep(path: str | Path, overrides: Iterable[str] = ()) -> SweepSpec:
    """Read the sweep file at `path` (YAML) and apply `key.path=value` overrides.

    Raises:
        SpecError: the file cannot be read, is not a YAML mapping, or is not a valid sweep.
    """
    content = _parse(_text_of(Path(path)), str(path))
    if not isinstance(content, dict):
        raise SpecError(f"{path}: a sweep file is a mapping (name:, datasets:, grid:, seeds:, ...)")
    return sweep_of(content, str(path), overrides)


def _text_of(path: Path) -> str:
    """The text of a sweep file."""
    try:
        return read_small(path, _MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError as cause:
        raise SpecError(f"{path}: no such sweep file{_similar_file(path)}") from cause
    except UnicodeDecodeError as cause:
        raise SpecError(f"{path}: not UTF-8 text (byte {cause.start}); save the sweep file as UTF-8") from cause
    except (OSError, ValueError) as cause:  # ValueError: a zero byte in the path
        code = getattr(cause, "errno", None)
        if code == errno.EFBIG:
            raise SpecError(f"{path}: larger than {_MAX_BYTES // 2**20} MiB, so it is no sweep file") from cause
        if code == errno.EINVAL:
            what = "a folder" if path.is_dir() else "not a regular file"
            raise SpecError(f"{path}: {what}; give a sweep file (YAML)") from cause
        raise SpecError(f"{short(str(path))}: cannot read the sweep file: {cause}") from cause


def _similar_file(path: Path) -> str:
    beside = [file.name for pattern in ("*.yaml", "*.yml") for file in path.parent.glob(pattern)]
    best = nearest(path.name, beside)
    return f", did you mean '{path.with_name(best)}'?" if best else ""


def sweep_of(content: Mapping[str, Any], source: str, overrides: Iterable[str] = ()) -> SweepSpec:
    """Make a sweep from a mapping and apply overrides. Error messages begin with `source`.

    Raises:
        SpecError: the mapping is not a valid sweep, or an override is invalid.
    """
    return _validate(apply_overrides(content, overrides), source)


def apply_overrides(content: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `content` with each `a.b=value` set. Values are parsed as YAML; list items are numbered from 0.

    Raises:
        SpecError: an override is not of this form, or its path does not exist in a list or below a value.
    """
    changed: dict[str, Any] = plain_value(content)
    for override in overrides:
        if not isinstance(override, str):
            raise SpecError(f"override {short(repr(override))}: give text, for example 'training.steps=1000'")
        place, equals, value = override.partition("=")
        keys = place.strip().split(".")
        shown = f"-o {short(override)}"
        if not equals or not all(keys):
            raise SpecError(f"{shown}: write it as key.path=value, for example -o training.steps=1000")
        if len(keys) > MAX_DEPTH:
            raise SpecError(f"{shown}: the path has {len(keys)} parts, but a sweep has no field so deep")
        _set(changed, keys, plain_value(_parse(value, shown)), shown)
    return changed


def _parse(text: str, source: str) -> Any:
    try:
        return read_yaml(text)
    except YamlError as cause:
        raise SpecError(f"{source}: not valid YAML: {cause}") from cause


def _set(content: dict[str, Any], keys: list[str], value: Any, shown: str) -> None:
    here: Any = content
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, list):
            if not _ITEM.fullmatch(key) or int(key) >= len(here):
                raise SpecError(f"{shown}: '{short(key)}' is not one of the {len(here)} items there (count from 0)")
            if last:
                here[int(key)] = value
            here = here[int(key)]
        elif isinstance(here, dict):
            if last:
                here[key] = value
            here = here.setdefault(key, {})
        else:
            raise SpecError(f"{shown}: '{'.'.join(keys[:depth])}' has no fields")


def _validate(content: dict[str, Any], source: str) -> SweepSpec:
    try:
        return SweepSpec.model_validate(content)
    except ValidationError as invalid:
        lines = [f"{source}: {mistake}" for mistake in mistakes_of(invalid, SweepSpec)]
        raise SpecError("\n".join(lines)) from None
