"""Names and the things they stand for, with "did you mean" where a name is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from dmray.errors import DmrayError

T = TypeVar("T")


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like `name`, or None when nothing is close."""
    found = difflib.get_close_matches(name.lower(), list(choices), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """One sentence for an unknown name: what it was, the nearest right one, else all of them."""
    known = sorted(choices)
    best = nearest(name, known)
    cure = f"did you mean '{best}'?" if best else f"known: {', '.join(known)}"
    return f"unknown {kind} '{name}', {cure}"


def lookup(kind: str, name: str, table: Mapping[str, T], error: type[DmrayError]) -> T:
    """`table[name]`, or `error` with the nearest right name."""
    if name not in table:
        raise error(unknown(kind, name, table))
    return table[name]
