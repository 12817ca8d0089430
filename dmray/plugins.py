"""Load objects that installed packages provide through entry points. A group is loaded when it is first used.

    [project.entry-points."dmray.tasks"]
    toy = "dmray_toy.tasks:TOY"

The value of an entry point is the object itself, or a function without arguments that returns it. If an entry point
fails to load, a warning is logged and the others are used.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,79}")
_log = logging.getLogger(__name__)
_loaded: dict[str, tuple[Plugin[Any], ...]] = {}


@dataclass(frozen=True)
class Plugin(Generic[T]):
    """`value`: the object. `origin`: the entry point and the package that it comes from, for messages.

    `package`: the name and the version of that package.
    """

    value: T
    origin: str
    package: str = "unknown"


def load_plugins(group: str, kind: type[T]) -> tuple[Plugin[T], ...]:
    """The objects of class `kind` in the entry-point group `group`, in the order of their names. Loads a group once."""
    if group not in _loaded:
        points = sorted(entry_points(group=group), key=lambda point: (point.name, point.value))
        plugins = [_load(point, kind) for point in points]
        _loaded[group] = tuple(plugin for plugin in plugins if plugin is not None)
    return _loaded[group]


def installed_plugins() -> dict[str, str]:
    """The packages that extend dmray, with their versions; none of them is imported."""
    extending = (
        package for package in distributions() if any(p.group.startswith("dmray.") for p in package.entry_points)
    )
    return dict(sorted((str(package.name), str(package.version)) for package in extending))


def forget_plugins() -> None:
    """Load each group again at its next use. Call this after packages were installed or removed."""
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
        name = getattr(value, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"its name is {name!a}, but must be letters, digits, '+', '.', '_' and '-'")
    except MemoryError:
        raise
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - the import of another package may raise anything
        why = " ".join(str(problem).split())[:500]
        _log.warning("%s is ignored (group '%s'): %s: %s", origin, point.group, type(problem).__name__, why)
        return None
    return Plugin(value, origin, package)
