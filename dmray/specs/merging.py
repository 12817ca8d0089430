"""Merge the values of a sweep file, of the file that it extends, and of overrides; know where each value comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dmray.errors import SpecError
from dmray.registry import short
from dmray.specs.domains import describes_domain
from dmray.specs.plain_values import plain_value
from dmray.specs.yaml_values import MAX_DEPTH, YamlError, read_yaml

Place = tuple[str, ...]  # the keys that lead to a value; items of lists are numbered from 0
OVERRIDE = "-o"
_ITEM = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class MergedValues:
    """The values of a sweep before they are validated.

    `source`: the sweep file, as messages name it; `base`: the file that it extends. `origins`: the file, or "-o", that
    gives the value at a place. It has the places of all values that are not mappings, and of the items of lists that
    overrides replace.
    """

    content: dict[str, Any]
    source: str
    origins: Mapping[Place, str]
    base: str | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any], source: str) -> MergedValues:
        """The values of one file or mapping."""
        values: dict[str, Any] = plain_value(content)
        return cls(values, source, dict.fromkeys(leaves(values), source))

    def extending(self, base: MergedValues) -> MergedValues:
        """These values over those of `base`: sections are merged key by key, other values replace."""
        content = _merged(base.content, self.content)
        origins = {place: self.origins.get(place, base.origins.get(place, "")) for place in leaves(content)}
        return MergedValues(content, self.source, origins, base.source)

    def overridden(self, overrides: Iterable[str]) -> MergedValues:
        """A copy with each `a.b=value` set. Values are parsed as YAML; they replace what is at that place.

        Raises:
            SpecError: an override is not of this form, or its path does not exist in a list or below a value.
        """
        content, origins = plain_value(self.content), dict(self.origins)
        for override in overrides:
            keys, value, shown = _parsed(override)
            _set(content, keys, value, shown)
            origins = {place: origin for place, origin in origins.items() if place[: len(keys)] != keys}
            origins |= dict.fromkeys((keys + below for below in leaves(value)), OVERRIDE)
        return replace(self, content=content, origins=origins)

    def origin_of(self, place: Place) -> str:
        """The file, or "-o", that the values at and below `place` come from; if there are several, they are named."""
        found: set[str] = set()
        for length in range(len(place), -1, -1):
            found = {origin for at, origin in self.origins.items() if at[:length] == place[:length]}
            if found:
                break
        files = found - {OVERRIDE}
        if not files and found:
            return OVERRIDE
        extends = f"{self.source}, which extends {self.base}" if self.base is not None else self.source
        return (files.pop() if len(files) == 1 else extends) + (f", with {OVERRIDE}" if OVERRIDE in found else "")


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text.

    Raises:
        SpecError: it is not valid. The message begins with `source`.
    """
    try:
        return read_yaml(text)
    except YamlError as cause:
        raise SpecError(f"{source}: not valid YAML: {cause}") from cause


def leaves(value: Any, place: Place = ()) -> Iterator[Place]:
    """The places of all values that are not mappings, or are empty ones."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*place, key))
    else:
        yield place


def _merged(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)) or describes_domain(below) or describes_domain(above):
        return above
    kept = {key: value for key, value in below.items() if key not in above}
    return {**kept, **{key: _merged(below.get(key), value) for key, value in above.items()}}


def _parsed(override: object) -> tuple[Place, Any, str]:
    """The place, the value and the text for messages of an override."""
    if not isinstance(override, str):
        raise SpecError(f"override {short(repr(override))}: give text, for example 'training.steps=1000'")
    place, equals, value = override.partition("=")
    keys = tuple(place.strip().split("."))
    shown = f"-o {short(override)}"
    if not equals or not all(keys):
        raise SpecError(f"{shown}: write it as key.path=value, for example -o training.steps=1000")
    if len(keys) > MAX_DEPTH:
        raise SpecError(f"{shown}: the path has {len(keys)} parts, but a sweep has no field so deep")
    return keys, plain_value(parse_yaml(value, shown)), shown


def _set(content: dict[str, Any], keys: Place, value: Any, shown: str) -> None:
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
