"""Read sweep files. An error names the file, the field, the value and the most similar valid one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dmray.errors import SpecError
from dmray.registry import nearest
from dmray.specs.mistakes import mistakes_of
from dmray.specs.sweep import SweepSpec


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with three changes: 1e-4 is a number, `off` is a string, and duplicate keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_EXPONENT = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+0123456789"))


def load_sweep(path: str | Path, overrides: Iterable[str] = ()) -> SweepSpec:
    """Read the sweep file at `path` (YAML) and apply `key.path=value` overrides.

    Raises:
        SpecError: the file cannot be read, is not a YAML mapping, or is not a valid sweep.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as cause:
        beside = [file.name for pattern in ("*.yaml", "*.yml") for file in Path(path).parent.glob(pattern)]
        best = nearest(Path(path).name, beside)
        cure = f", did you mean '{Path(path).with_name(best)}'?" if best else ""
        raise SpecError(f"{path}: no such sweep file{cure}") from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise SpecError(f"{path}: cannot read the sweep file: {cause}") from cause
    content = _parse(text, str(path))
    if not isinstance(content, dict):
        raise SpecError(f"{path}: a sweep file is a mapping (name:, datasets:, grid:, seeds:, ...)")
    return sweep_of(content, str(path), overrides)


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
    changed: dict[str, Any] = _copy(content)
    for override in overrides:
        place, equals, value = override.partition("=")
        if not equals or not place:
            raise SpecError(f"-o {override}: write it as key.path=value, for example -o training.steps=1000")
        _set(changed, place.split("."), _parse(value, f"-o {override}"), override)
    return changed


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as cause:
        mark = cause.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = ", ".join(part for part in (cause.problem, cause.context) if part)
        raise SpecError(f"{source}: not valid YAML: {place}{problem}") from cause
    except yaml.YAMLError as cause:
        raise SpecError(f"{source}: not valid YAML: {' '.join(str(cause).split())}") from cause


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _set(content: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    here: Any = content
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                raise SpecError(f"-o {override}: '{key}' is not one of the {len(here)} items there (count from 0)")
            if last:
                here[int(key)] = value
            here = here[int(key)]
        elif isinstance(here, dict):
            if last:
                here[key] = value
            here = here.setdefault(key, {})
        else:
            raise SpecError(f"-o {override}: '{'.'.join(keys[:depth])}' has no fields")


def _validate(content: dict[str, Any], source: str) -> SweepSpec:
    try:
        return SweepSpec.model_validate(content)
    except ValidationError as invalid:
        lines = [f"{source}: {mistake}" for mistake in mistakes_of(invalid, SweepSpec)]
        raise SpecError("\n".join(lines)) from None
