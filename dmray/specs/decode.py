"""The names of the decoding modes: `window`, `stream:m`, `recurrent`."""

from __future__ import annotations

import re
from typing import NamedTuple

from dmray.registry import nearest

_STREAM = re.compile(r"stream:([1-9][0-9]{0,5})")


class DecodeMode(NamedTuple):
    """`streams` is the m of `stream:m`, None for the others."""

    name: str
    streams: int | None


def parse_decode(text: str) -> DecodeMode:
    """The mode that `text` names. Each has one spelling, as it is part of what identifies a trial.

    Raises:
        ValueError: it names none; the message has the nearest.
    """
    if text in ("window", "recurrent"):
        return DecodeMode(text, None)
    stream = _STREAM.fullmatch(text)
    if stream:
        return DecodeMode("stream", int(stream.group(1)))
    if text.startswith("stream"):
        raise ValueError(f"decode '{text}': stream takes a number of states from 1 on, for example stream:2")
    word, _, number = text.partition(":")
    best = nearest(word, ("window", "stream", "recurrent"))
    if best == "stream":
        best = f"stream:{number}" if _STREAM.fullmatch(f"stream:{number}") else "stream:2"
    cure = f"did you mean '{best}'?" if best else "known: window, stream:<m>, recurrent"
    raise ValueError(f"unknown decoding mode '{text}', {cure}")
