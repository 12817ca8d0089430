"""Read sweep files. An error names the file, the field, the value and the most similar valid one."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dmray.errors import SpecError
from dmray.files import read_small, user_path
from dmray.registry import nearest, short, short_repr
from dmray.shipped import shipped_sweep, shipped_sweeps
from dmray.specs.merging import OVERRIDE, MergedValues, parse_yaml
from dmray.specs.mistakes import Mistake, mistakes_of, written
from dmray.specs.sweep import SweepSpec
from dmray.specs.yaml_values import MAX_CHARACTERS

EXTENDS = "extends"
_MAX_BYTES = 4 * MAX_CHARACTERS  # a character has at most four bytes
_FIELD = re.compile(r"([a-z_]+(?:\.[a-z0-9_]+)*)[: ]")


def load_sweep(path: str | Path, overrides: Iterable[str] = ()) -> SweepSpec:
    """Read the sweep file at `path` (YAML), or one of dmray's by its name, and apply `key.path=value` overrides.

    Raises:
        SpecError: the file cannot be read, is not a YAML mapping, or is not a valid sweep.
    """
    return validated(read_values(path, overrides))


def sweep_of(content: Mapping[str, Any], source: str, overrides: Iterable[str] = ()) -> SweepSpec:
    """Make a sweep from a mapping and apply overrides. Error messages begin with `source`.

    Raises:
        SpecError: the mapping is not a valid sweep, or an override is invalid.
    """
    return validated(values_of(content, source, overrides))


def values_of(content: Mapping[str, Any], source: str, overrides: Iterable[str] = ()) -> MergedValues:
    """The values of a mapping, as `read_values` gives them of a file. What it extends is looked for from here."""
    return _with_base(MergedValues.of(content, source), Path(), overrides)


def read_values(path: str | Path, overrides: Iterable[str] = ()) -> MergedValues:
    """The values of a sweep file, over those of the file that it extends, with overrides.

    Raises:
        SpecError: a file cannot be read or is not a YAML mapping, or an override is invalid.
    """
    file, source = _file_of(path, Path())
    return _with_base(_values_of(file, source, path), file.parent, overrides)


def validated(values: MergedValues) -> SweepSpec:
    """The sweep of these values.

    Raises:
        SpecError: they are not a valid sweep. The message names the file, or the option, in which each mistake is.
    """
    try:
        return SweepSpec.model_validate(values.content)
    except ValidationError as invalid:
        lines = [located(mistake, values) for mistake in mistakes_of(invalid, SweepSpec)]
        raise SpecError("\n".join(lines)) from None


def _with_base(values: MergedValues, folder: Path, overrides: Iterable[str]) -> MergedValues:
    """`values` with their base, which they name relative to `folder`, and with overrides."""
    merged = values
    if EXTENDS in values.content:
        merged = _without_extends(values).extending(_base_of(values, folder))
    merged = merged.overridden(overrides)
    if EXTENDS in merged.content:
        raise SpecError(f"{OVERRIDE} {EXTENDS}: only a file can extend another one; write it into {values.source}")
    return merged


def _base_of(values: MergedValues, folder: Path) -> MergedValues:
    given, place = values.content[EXTENDS], f"{values.source}: {EXTENDS}"
    if not isinstance(given, str) or not given:
        raise SpecError(f"{place}: give the name of one sweep file, not {written(given)}")
    try:
        file, source = _file_of(given, folder)
        base = _values_of(file, source, given)
    except SpecError as problem:
        raise SpecError(f"{place}: {problem}") from problem
    if source == values.source and EXTENDS in base.content:
        raise SpecError(f"{place}: a file cannot extend itself; name another file, or remove the field")
    if EXTENDS in base.content:
        raise SpecError(
            f"{place}: {source} itself extends {short_repr(base.content[EXTENDS])}, and a file that is extended may "
            f"not extend another one; copy what {source} changes into {values.source}"
        )
    return base


def _without_extends(values: MergedValues) -> MergedValues:
    content = {key: value for key, value in values.content.items() if key != EXTENDS}
    return replace(values, content=content)


def _file_of(given: str | Path, folder: Path) -> tuple[Path, str]:
    """The file that a path (relative to `folder`) or the name of one of dmray's files means, and what messages say."""
    file = shipped_sweep(given, folder) or folder / user_path(given)
    is_shipped = shipped_sweeps().get(file.stem) == file
    return file, f"{file.stem} (of dmray)" if is_shipped else os.path.normpath(file)


def _values_of(file: Path, source: str, given: str | Path) -> MergedValues:
    content = parse_yaml(_text_of(file, given), source)
    if not isinstance(content, dict):
        raise SpecError(f"{source}: a sweep file is a mapping (name:, datasets:, grid:, seeds:, ...)")
    return MergedValues.of(content, source)


def _text_of(path: Path, given: str | Path) -> str:
    """The text of a sweep file. `given`: how it was named, for a message that names another one."""
    try:
        return read_small(path, _MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError as cause:
        raise SpecError(f"{path}: no such sweep file{_similar_file(path, Path(given))}") from cause
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


def _similar_file(path: Path, given: Path) -> str:
    if path.stem in shipped_sweeps():
        return f"; dmray brings one: give '{path.stem}'"
    beside = [file.name for pattern in ("*.yaml", "*.yml") for file in path.parent.glob(pattern)]
    best = nearest(path.name, beside)
    return f", did you mean '{given.with_name(best)}'?" if best else ""


def located(mistake: Mistake, values: MergedValues) -> str:
    """The message of a mistake. It begins with the file that gives the value, or says that -o gives it.

    A mistake without a place is looked for at the field with which its message begins.
    """
    place = mistake.place
    if not place and (named := _FIELD.match(mistake.problem)) and named[1].split(".")[0] in values.content:
        place = named[1]
    if mistake.unknown_field and nearest(place, (*SweepSpec.model_fields, EXTENDS)) == EXTENDS:
        mistake = mistake._replace(problem=f"unknown field, did you mean '{EXTENDS}'?")
    origin = values.origin_of(tuple(place.split("."))) if place else values.origin_of(())
    return f"{values.source}: {OVERRIDE} {mistake}" if origin == OVERRIDE else f"{origin}: {mistake}"
