"""Names and the things they stand for: tables with "did you mean", open to packages of others through entry points."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from dmray.errors import DmrayError, PluginError

T = TypeVar("T")
_MOST_LISTED = 30


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like `name`, or None when nothing is close."""
    found = difflib.get_close_matches(name.lower(), list(choices), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """One sentence for an unknown name: what it was, the nearest right one, else all of them if they can be read."""
    known = sorted(choices)
    best = nearest(name, known)
    listed = ", ".join(known) if len(known) <= _MOST_LISTED else f"{', '.join(known[:3])} and {len(known) - 3} more"
    cure = f"did you mean '{best}'?" if best else f"known: {listed}"
    return f"unknown {kind} '{name}', {cure}"


def lookup(kind: str, name: str, table: Mapping[str, T], error: type[DmrayError]) -> T:
    """`table[name]`, or `error` with the nearest right name."""
    if name not in table:
        raise error(unknown(kind, name, table))
    return table[name]


class Registry(Mapping[str, T], Generic[T]):
    """The objects of one kind by name. A name's module is imported when the name is first looked up.

    `builtin` maps names to objects, or to "package.module:attribute" where importing is to wait. Installed packages
    add names through the entry-point group `group` (the entry's name is the object's name). Iteration gives dmray's own
    names first, in their order.

    Raises (on look-up and iteration):
        PluginError: a package adds a name that another one has; or its entry cannot be imported, or is no `wanted`.
            The package, the entry point and the reason are named.
        KeyError: the name is unknown (`lookup` turns that into a sentence).
    """

    def __init__(self, kind: str, group: str, wanted: type[T], builtin: Mapping[str, T | str]) -> None:
        self.kind, self.group = kind, group
        self._wanted, self._builtin = wanted, builtin
        self._loaded: dict[str, T] = {}
        self._entries: dict[str, EntryPoint] | None = None

    def __getitem__(self, name: str) -> T:
        if name not in self._loaded:
            if name in self._builtin:
                self._loaded[name] = self._from_here(self._builtin[name])
            else:
                self._loaded[name] = self._from_plugin(self._plugins()[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._builtin, *self._plugins()))

    def __len__(self) -> int:
        return len(self._builtin) + len(self._plugins())

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._plugins()

    def find(self, name: str, error: type[DmrayError]) -> T:
        """`self[name]`, or `error` with the nearest right name."""
        return lookup(self.kind, name, self, error)

    def _plugins(self) -> dict[str, EntryPoint]:
        if self._entries is None:
            entries: dict[str, EntryPoint] = {}
            for entry in entry_points(group=self.group):
                if entry.name in self._builtin or entry.name in entries:
                    other = _package(entries[entry.name]) if entry.name in entries else "dmray"
                    raise PluginError(
                        f"package {_package(entry)} adds the {self.kind} '{entry.name}', which {other} has already: "
                        f"rename one of them (entry points '{self.group}')"
                    )
                entries[entry.name] = entry
            self._entries = entries
        return self._entries

    def _from_here(self, given: T | str) -> T:
        if not isinstance(given, str):
            return given
        module, _, attribute = given.partition(":")
        found: T = getattr(import_module(module), attribute)
        return found

    def _from_plugin(self, entry: EntryPoint) -> T:
        place = f"package {_package(entry)}, entry point '{self.group}' {entry.name} = {entry.value}"
        try:
            found = entry.load()
        except Exception as cause:
            raise PluginError(f"{place}: cannot be imported: {type(cause).__name__}: {cause}") from cause
        if not isinstance(found, self._wanted):
            raise PluginError(f"{place}: is a {type(found).__name__}, not a {self._wanted.__name__}")
        return found


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "(unknown)"
