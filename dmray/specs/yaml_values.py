"""Read YAML text as plain values, by the core schema of YAML 1.2, within limits on size, depth and expansion.

PyYAML parses the text into events; what a scalar means is decided here, because PyYAML's own loaders follow YAML 1.1
(010 is 8, 1:00 is 60, yes is true) and expand anchors without a limit. The differences from YAML 1.2's core schema:

* whole numbers and floats may have underscores between groups of three digits: 1_000_000;
* the merge key `<<` (a mapping, or a list of mappings) is supported; a key that is given beside it overrides it;
* a key given twice, a tag (!!str, !!python/...), a second document, and a number too large for a float are errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from dmray.registry import short, short_repr

MAX_CHARACTERS = 2**20
MAX_VALUES = 100_000  # after the expansion of anchors
MAX_DEPTH = 50
_MAX_DIGITS = 30  # more than any number of a sweep has; Python itself refuses to convert 4,300

_GROUPED = r"[0-9]{1,3}(?:_[0-9]{3})+"
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((sign + name for sign in ("", "+") for name in (".inf", ".Inf", ".INF")), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_INT = re.compile(rf"[-+]?(?:[0-9]+|{_GROUPED})", re.ASCII)
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(rf"[-+]?(?:\.[0-9]+|(?:[0-9]+|{_GROUPED})(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_MERGE = "<<"


class YamlError(ValueError):
    """The text is not the YAML that is read here. The message has the line and the column."""


def read_yaml(text: str) -> Any:
    """The value of a YAML text: dicts with string keys, lists, strings, numbers, booleans and None.

    An anchor's value is one object wherever an alias repeats it, so a caller that changes it must copy first.

    Raises:
        YamlError: the text is not valid YAML, or not within the rules and limits of this module.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"{len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    try:
        return _Reader().read(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as cause:
        problem = ", ".join(part for part in (cause.problem, cause.context) if part)
        raise YamlError(f"{_place(cause.problem_mark)}{problem}") from cause
    except yaml.reader.ReaderError as cause:
        before = text[: cause.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise YamlError(
            f"line {line}, column {column}: the character U+{cause.character:04X} is not allowed"
        ) from cause
    except (ValueError, OverflowError) as cause:  # PyYAML on an escape such as "\U00110000"
        if isinstance(cause, YamlError):
            raise
        raise YamlError(f"an escape sequence names no character ({cause})") from cause


@dataclass
class _Node:
    """A value that is complete: `count` values are in it, after the expansion of anchors, in `depth` levels."""

    value: Any
    count: int = 1
    depth: int = 0


@dataclass
class _Open:
    """A list or mapping whose end was not read yet. `key`: of a mapping, the key whose value comes next."""

    start: yaml.Event
    is_mapping: bool
    items: list[_Node] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    merged: _Node | None = None
    count: int = 1
    depth: int = 0


class _Reader:
    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._anchors: dict[str, _Node | None] = {}  # None: its value is not complete yet
        self._count = 0

    def read(self, events: Iterator[yaml.Event]) -> Any:
        root: _Node | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise _error(event, "a second document begins; give one document, without '---' between its parts")
            node = self._node(event)
            if node is not None:
                root = self._add(node, event) or root
        return root.value if root is not None else None

    def _node(self, event: yaml.Event) -> _Node | None:
        """The value that is complete with this event; None if there is none."""
        if isinstance(event, yaml.AliasEvent):
            return self._repeated(event)
        if isinstance(event, yaml.NodeEvent):
            self._check(event)
        if isinstance(event, yaml.ScalarEvent):
            return self._named(event.anchor, _Node(_key(event) if self._key_is_next else _scalar(event)))
        if isinstance(event, yaml.CollectionStartEvent):
            self._begin(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            return self._end()
        return None

    @property
    def _key_is_next(self) -> bool:
        return bool(self._open) and self._open[-1].is_mapping and self._open[-1].key is None

    def _check(self, event: yaml.NodeEvent) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            cure = "write a plain value, in quotes if it is text"
            raise _error(event, f"the tag {short_repr(tag)} is not supported; {cure}")
        self._count += 1
        self._check_count(event, self._count)

    def _check_count(self, event: yaml.Event, count: int) -> None:
        if count > MAX_VALUES:
            raise _error(event, f"more than {MAX_VALUES:,} values, counted with what aliases repeat")

    def _begin(self, event: yaml.CollectionStartEvent) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise _error(event, f"nested more than {MAX_DEPTH} levels deep")
        if self._key_is_next:
            raise _error(event, "a key must be text, not a list or a mapping")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._open.append(_Open(event, isinstance(event, yaml.MappingStartEvent)))

    def _end(self) -> _Node:
        closed = self._open.pop()
        if closed.is_mapping:
            inherited = closed.merged.value if closed.merged is not None else {}
            value: Any = {**inherited, **closed.values}
        else:
            value = [item.value for item in closed.items]
        return self._named(closed.start.anchor, _Node(value, closed.count, closed.depth + 1))  # type: ignore[attr-defined]

    def _named(self, anchor: str | None, node: _Node) -> _Node:
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _repeated(self, event: yaml.AliasEvent) -> _Node:
        if event.anchor not in self._anchors:
            raise _error(event, f"the alias *{short(str(event.anchor))} has no anchor of this name before it")
        node = self._anchors[event.anchor]
        if node is None:
            raise _error(event, f"the alias *{short(str(event.anchor))} is inside the value of its own anchor")
        if len(self._open) + node.depth > MAX_DEPTH:
            raise _error(event, f"nested more than {MAX_DEPTH} levels deep")
        self._count += node.count
        self._check_count(event, self._count)
        return node

    def _add(self, node: _Node, event: yaml.Event) -> _Node | None:
        """Put a complete value into the list or mapping that is open. Returns it if none is: it is the document."""
        if not self._open:
            return node
        into = self._open[-1]
        into.count, into.depth = into.count + node.count, max(into.depth, node.depth)
        if not into.is_mapping:
            into.items.append(node)
        elif into.key is None:
            self._add_key(into, node, event)
        elif into.key == _MERGE:
            into.merged, into.key = _merged(node, event), None
        else:
            into.values[into.key], into.key = node.value, None
        return None

    def _add_key(self, into: _Open, node: _Node, event: yaml.Event) -> None:
        key = node.value
        if not isinstance(key, str):
            raise _error(event, "a key must be text, not a list or a mapping")
        if key in into.values or (key == _MERGE and into.merged is not None):
            raise _error(event, f"{short_repr(key)} is given twice")
        into.key = key


def _key(event: yaml.ScalarEvent) -> str:
    """A key is text as it is written: 1 is '1', and null is 'null'."""
    key = _text(event)
    if key == _MERGE and event.style is not None:
        raise _error(event, "the merge key << is written without quotes")
    return key


def _scalar(event: yaml.ScalarEvent) -> Any:
    text = _text(event)
    if event.style is not None or not event.implicit[0]:
        return text
    if text in _WORDS:
        return _WORDS[text]
    is_int, is_float = _INT.fullmatch(text), _FLOAT.fullmatch(text)
    if (is_int or is_float or _OTHER_BASE.fullmatch(text)) and len(text) > _MAX_DIGITS:
        raise _error(event, f"a number of {len(text)} characters; at most {_MAX_DIGITS} are read")
    if is_int:
        return int(text)
    if _OTHER_BASE.fullmatch(text):
        return int(text, 0)
    if not is_float:
        return text
    value = float(text)
    if math.isinf(value):
        raise _error(event, f"the number {text} is too large")
    return value


def _text(event: yaml.ScalarEvent) -> str:
    text: str = event.value
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _error(event, "an escape sequence names half of a surrogate pair, which is no character")
    return text


def _merged(node: _Node, event: yaml.Event) -> _Node:
    """What `<<` adds to a mapping: of a list of mappings, the earlier ones win."""
    sources = node.value if isinstance(node.value, list) else [node.value]
    if not all(isinstance(source, dict) for source in sources):
        raise _error(event, "'<<' takes a mapping or a list of mappings, for example *anchor")
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        merged.update(source)
    return _Node(merged)


def _error(event: yaml.Event, problem: str) -> YamlError:
    return YamlError(f"{_place(event.start_mark)}{problem}")


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
