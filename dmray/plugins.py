"""Objects that other installed packages bring: the entry points of a group, loaded when something asks for them.

    [project.entry-points."dmray.tasks"]
    toy = "dmray_toy.tasks:TOY"

The value of an entry point is the object itself, or a function without arguments that returns it. An entry point that
fails to load is reported by one warning in the log and left out; the others are used.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)
_loaded: dict[str, tuple[Plugin[Any], ...]] = {}


@dataclass(frozen=True)
class Plugin(Generic[T]):
    """`value`: the object; `origin`: which entry point of which package brought it, for messages."""

    value: T
    origin: str


def load_plugins(group: str, kind: type[T]) -> tuple[Plugin[T], ...]:
    """The objects of class `kind` that installed packages register under `group`; each group is loaded once."""
    if group not in _loaded:
        points = sorted(entry_points(group=group), key=lambda point: (point.name, point.value))
        plugins = [_load(point, kind) for point in points]
        _loaded[group] = tuple(plugin for plugin in plugins if plugin is not None)
    return _loaded[group]


def forget_plugins() -> None:
    """Load every group again when it is next asked for: after packages were installed or removed."""
    _loaded.clear()


def _load(point: EntryPoint, kind: type[T]) -> Plugin[T] | None:
    package = "unknown" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    origin = f"entry point '{point.name} = {point.value}' of package '{package}'"
    try:
        value = point.load()
        if not isinstance(value, kind) and callable(value):
            value = value()
        if not isinstance(value, kind):
            raise TypeError(f"it gives a {type(value).__name__}, not a {kind.__name__}")
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - another package's import may fail in any way
        _log.warning("%s is left out (group '%s'): %s: %s", origin, point.group, type(problem).__name__, problem)
        return None
    return Plugin(value, origin)
