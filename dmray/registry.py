"""Look up names in a table, with "did you mean" for an unknown name; registries, to which packages can add entries."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Generic, TypeVar

from dmray.errors import DmrayError, PluginError
from dmray.escaping import printable
from dmray.plugins import Plugin, load_plugins

T = TypeVar("T")
_MAX_LISTED = 30
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of a function: another in each process
_MAX_SHOWN = 100  # characters of a value in a message
_MAX_COMPARED = 200  # the comparison takes the square of the length


def short(text: str) -> str:
    """`text` for a message: on one line, and with only the first characters if it is long."""
    line = printable(text[:_MAX_SHOWN])
    return line if len(text) <= _MAX_SHOWN else f"{line}... ({len(text):,} characters)"


def short_repr(value: object) -> str:
    """`repr(value)` for a message, shortened as by `short`."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]!r}... ({len(value):,} characters)"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 4 * _MAX_SHOWN:
        return f"a whole number of {value.bit_length():,} bits"  # Python does not convert long ones to text
    try:
        return short(repr(value))
    except Exception:  # noqa: BLE001 - the repr of any class, or of a nested integer that is too long for text
        return f"a {type(value).__name__}"


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most similar to `name`, or None if none is similar."""
    if len(name) > _MAX_COMPARED:
        return None
    found = difflib.get_close_matches(name.lower(), list(choices), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """The error message for an unknown name: with the most similar known name, or with a list of the known names."""
    known = sorted(choices)
    best = nearest(name, known)
    listed = ", ".join(known) if len(known) <= _MAX_LISTED else f"{', '.join(known[:3])} and {len(known) - 3} more"
    hint = f"did you mean '{best}'?" if best else f"known: {listed}"
    return f"unknown {kind} '{short(name)}', {hint}"


def lookup(kind: str, name: str, table: Mapping[str, T], error: type[DmrayError]) -> T:
    """Return `table[name]`.

    Raises:
        error: `name` is not in the table. The message is made by `unknown`.
    """
    if name not in table:
        raise error(unknown(kind, name, table))
    return table[name]


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to the objects of one kind: dmray's own, and those of installed packages.

    `builtin` maps names to objects, or to "package.module:attribute", which is imported at its look-up. Installed
    packages add objects through the entry-point group `group` (`dmray.plugins`). They are loaded at the look-up of a
    name that is not built in, and at iteration. `add` adds an object in this process only, for scripts and notebooks.
    Iteration gives dmray's own names first.

    Raises (on look-up and iteration):
        PluginError: a package uses a name that dmray or another package already has. The message names both.
        KeyError: the name is unknown. (`find` raises a `DmrayError` with a message instead.)
    """

    def __init__(self, kind: str, group: str, wanted: type[T], builtin: Mapping[str, T | str]) -> None:
        self.kind, self.group = kind, group
        self._wanted, self._builtin = wanted, builtin
        self._added: dict[str, T] = {}

    def add(self, value: T) -> T:
        """Add an object in this process. It replaces an object that was added under the same name.

        Processes that Ray starts do not have it, so a sweep that uses it must run with `local=True`.

        Raises:
            PluginError: dmray or an installed package already has this name, or the object is of another class.
        """
        if not isinstance(value, self._wanted):
            raise PluginError(f"{self.kind} {value!r}: must be a {self._wanted.__name__}")
        name: str = value.name  # type: ignore[attr-defined]
        if name in self._builtin or name in self._plugins():
            raise PluginError(f"{self.kind} '{name}' already exists; choose another name")
        self._added[name] = value
        return value

    def is_installed(self, name: str) -> bool:
        """Whether other processes have it too, because it is dmray's own or a package's and was not added by `add`."""
        return name not in self._added

    def package_of(self, name: str) -> str | None:
        """The name and the version of the package that brings an object; None for dmray's own.

        An object that was added in this process has no version: a digest of its description stands for it.
        """
        if name in self._added:
            described = _ADDRESS.sub("", repr(self._added[name]))
            return f"script {hashlib.sha256(described.encode(errors='replace')).hexdigest()[:8]}"
        if name in self._builtin:
            return None
        packages = [
            each.package for each in load_plugins(self.group, self._wanted) if each.value is self._plugins()[name]
        ]
        return packages[0]

    def __getitem__(self, name: str) -> T:
        if name in self._added:
            return self._added[name]
        if name not in self._builtin:
            return self._plugins()[name]
        given = self._builtin[name]
        if not isinstance(given, str):
            return given
        module, _, attribute = given.partition(":")
        found: T = getattr(import_module(module), attribute)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter((*self._builtin, *self._plugins(), *self._added))

    def __len__(self) -> int:
        return len(self._builtin) + len(self._plugins()) + len(self._added)

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._added or name in self._plugins()

    def find(self, name: str, error: type[DmrayError]) -> T:
        """`self[name]`.

        Raises:
            error: the name is unknown. The message has the most similar known name.
        """
        return lookup(self.kind, name, self, error)

    def _plugins(self) -> dict[str, T]:
        found: dict[str, Plugin[T]] = {}
        for plugin in load_plugins(self.group, self._wanted):
            name: str = plugin.value.name  # type: ignore[attr-defined]
            if name in self._builtin or name in found:
                other = found[name].origin if name in found else "dmray"
                raise PluginError(f"{self.kind} '{name}' of {plugin.origin}: {other} already has this name; rename it")
            found[name] = plugin
        return {name: plugin.value for name, plugin in found.items()}
