"""Names and the things they stand for, with "did you mean" where a name is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from dmray.errors import DmrayError

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
