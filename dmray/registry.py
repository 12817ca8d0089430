"""Look names up in a table, with "did you mean" for a wrong name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from dmray.errors import DmrayError

T = TypeVar("T")
_MAX_LISTED = 30


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most similar to `name`, or None if none is similar."""
    found = difflib.get_close_matches(name.lower(), list(choices), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """An error message for an unknown name, with the most similar known one, or else a list of the known ones."""
    known = sorted(choices)
    best = nearest(name, known)
    listed = ", ".join(known) if len(known) <= _MAX_LISTED else f"{', '.join(known[:3])} and {len(known) - 3} more"
    hint = f"did you mean '{best}'?" if best else f"known: {listed}"
    return f"unknown {kind} '{name}', {hint}"


def lookup(kind: str, name: str, table: Mapping[str, T], error: type[DmrayError]) -> T:
    """Return `table[name]`.

    Raises:
        error: `name` is not in the table; the message is `unknown`'s.
    """
    if name not in table:
        raise error(unknown(kind, name, table))
    return table[name]
