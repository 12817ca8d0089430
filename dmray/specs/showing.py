"""A merged sweep as YAML text: each value with a comment that says where it comes from, in 80 columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from dmray.escaping import printable
from dmray.redaction import without_secrets
from dmray.specs.domains import Varied
from dmray.specs.merging import MergedValues, Place, leaves
from dmray.specs.sweep import SweepSpec
from dmray.specs.yaml_values import read_yaml

_WIDTH = 80
_COMMENT_COLUMN = 42
_INDENT = 2
_DEFAULT = "default"
_HEADING = "# The comment behind a value says which file or option gives it."
_PLAIN = re.compile(r"[A-Za-z0-9/.][A-Za-z0-9/._+-]*")  # text that needs no quotes, unless it is read as a number


def show_sweep(values: MergedValues) -> str:
    """A valid sweep's fields with their values, those left out in the file included; itself a sweep file.

    What a list of mappings leaves out (`datasets`, `grid`) is not filled in. Passwords are replaced by `***`.
    """
    content, defaults = _completed(SweepSpec, values.content)
    origins = {**dict.fromkeys(defaults, _DEFAULT), **values.origins}
    return "\n".join([_HEADING, *_Text(origins).fields(_redacted(content), 0, ())]) + "\n"


def as_yaml(content: Mapping[str, Any]) -> str:
    """The values of a sweep as a YAML text without comments."""
    return "\n".join(_Text({}).fields(content, 0, ())) + "\n"


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    return without_secrets(value) if isinstance(value, str) else value


def _completed(
    model: type[BaseModel], given: Mapping[str, Any], place: Place = ()
) -> tuple[dict[str, Any], set[Place]]:
    """`given` with the default values of a model, and the places of those."""
    content: dict[str, Any] = {}
    defaults: set[Place] = set()
    for name, field in model.model_fields.items():
        inner, default = _model_in(field.annotation), field.get_default(call_default_factory=True)
        present = given.get(name, default)
        if inner is not None and (isinstance(present, dict) or (name not in given and _is_one(default))):
            content[name], below = _completed(inner, given.get(name, {}), (*place, name))
            defaults |= below
        elif name not in given:
            content[name] = default
            defaults.update(leaves(default, (*place, name)))
        else:
            content[name] = given[name]
    return content, defaults


def _is_one(default: Any) -> bool:
    """Whether a default is one value of a model, with or without alternatives for its fields."""
    return isinstance(default, BaseModel | Varied)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _model_in(inner))), None)


class _Text:
    """Writes values as lines of YAML. `origins`: the comment of the value at a place."""

    def __init__(self, origins: Mapping[Place, str]) -> None:
        self._origins = origins
        self._above = {place[:length] for place in origins for length in range(len(place))}

    def fields(self, content: Mapping[str, Any], indent: int, place: Place) -> Iterator[str]:
        for key, value in content.items():
            yield from self._entry(f"{' ' * indent}{_scalar(key)}:", value, indent, (*place, key))

    def _entry(self, head: str, value: Any, indent: int, place: Place) -> Iterator[str]:
        """The lines of a value. `head`, a key or a list's dash, is the beginning of the first one."""
        first, *rest = self._lines(head, value, indent, place)
        comment = f"# {printable(self._origins[place])}" if place in self._origins else ""
        if not comment:
            yield first
        elif len(first) + 2 + len(comment) <= _WIDTH:
            yield f"{first:<{max(len(first), min(_COMMENT_COLUMN, _WIDTH - len(comment)) - 2)}}  {comment}"
        else:
            room = _WIDTH - indent
            yield " " * indent + (comment if len(comment) <= room else f"# ...{comment[5 - room :]}")
            yield first
        yield from rest

    def _lines(self, head: str, value: Any, indent: int, place: Place) -> Iterator[str]:
        is_nested = isinstance(value, dict | list) and bool(value)
        one_line = f"{head} {_flow(value)}"
        if not is_nested or (len(one_line) <= _WIDTH and place not in self._above):
            yield from [one_line] if len(one_line) <= _WIDTH or not isinstance(value, str) else _broken(head, value)
            return
        indent += _INDENT
        if isinstance(value, dict):
            lines = self.fields(value, indent, place)
            if head.endswith("-"):  # the first field stands behind the dash
                yield f"{head} {next(lines).lstrip()}"
            else:
                yield head
            yield from lines
            return
        yield head
        if place in self._above or any(isinstance(item, dict | list) for item in value):
            for number, item in enumerate(value):
                yield from self._entry(f"{' ' * indent}-", item, indent, (*place, str(number)))
        else:
            yield from _filled([_scalar(item) for item in value], indent)


def _filled(items: list[str], indent: int) -> Iterator[str]:
    """A list of scalars on as many lines as it needs."""
    line = " " * indent + "["
    for item in items[:-1]:
        if line.strip() != "[" and len(line) + len(item) + 1 > _WIDTH:
            yield line.rstrip()
            line = " " * (indent + 1)
        line += f"{item}, "
    if line.strip() != "[" and len(line) + len(items[-1]) + 1 > _WIDTH:
        yield line.rstrip()
        line = " " * (indent + 1)
    yield f"{line}{items[-1]}]"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        text = repr(value)  # YAML 1.1 takes 1e-05 for text, but not 1.0e-05
        return text if "." in text else text.replace("e", ".0e")
    if isinstance(value, str) and _PLAIN.fullmatch(value) and read_yaml(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _broken(head: str, text: str) -> Iterator[str]:
    """A text that is too long for a line, in quotes: a backslash at the end of a line joins it with the next one."""
    indent = " " * (len(head) - len(head.lstrip()) + _INDENT)
    line = f'{head} "'
    for character in text:
        escaped = json.dumps(character, ensure_ascii=False)[1:-1]
        if len(line) + len(escaped) + 1 > _WIDTH:
            yield f"{line}\\"
            line, escaped = indent, f"\\{escaped}" if escaped == " " else escaped  # leading spaces do not count
        line += escaped
    yield f'{line}"'
