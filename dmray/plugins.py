"""Load objects that installed packages provide through entry points. A group is loaded when it is first used.

    [project.entry-points."dmray.tasks"]
    toy = "dmray_toy.tasks:TOY"

The value of an entry point is the object itself, or a function without arguments that returns it. If an entry point
fails to load, a warning is logged and the others are used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import Any, Generic, TypeVar

from dmray.escaping import printable

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
        points = sorted(_points(group), key=lambda point: (point.name, point.value))
        plugins = [_load(point, kind) for point in points]
        _loaded[group] = tuple(plugin for plugin in plugins if plugin is not None)
    return _loaded[group]


def installed_plugins() -> dict[str, str]:
    """The packages that extend dmray, with their versions; none of them is imported."""
    extending = _packages(lambda group: group.startswith("dmray."))
    return dict(sorted((str(package.name), str(package.version)) for package in extending))


def forget_plugins() -> None:
    """Load each group again at its next use. Call this after packages were installed or removed."""
    _loaded.clear()


def _points(group: str) -> Iterable[EntryPoint]:
    try:
        return entry_points(group=group)
    except Exception:  # noqa: BLE001 - one package without a name is enough, and the parser raises anything
        packages = list(_packages(group.__eq__))
        return [point for package in packages for point in package.entry_points if point.group == group]


def _packages(wanted: Callable[[str], bool]) -> Iterator[Distribution]:
    """Installed packages with an entry point in a `wanted` group; of several with one name the first.

    One whose metadata cannot be read is left out with a warning.
    """
    seen: set[str] = set()
    for package in distributions():
        try:
            if not any(wanted(point.group) for point in package.entry_points):
                continue
            name = package.metadata["Name"]
            if not name or not package.version:
                raise ValueError("no name or no version")
        except Exception as problem:  # noqa: BLE001 - as above
            folder = getattr(package, "_path", "a package")
            _warn_once(f"{folder}: its metadata cannot be read ({problem}); it is ignored; install the package again")
            continue
        if name not in seen:
            seen.add(name)
            yield package


@cache
def _warn_once(problem: str) -> None:
    _log.warning("%s", printable(problem))


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
