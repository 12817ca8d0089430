"""The registry of decode modes. A decode mode says how a policy uses the past of an episode when it acts.

An entry says how the mode is written in a sweep file and names the class that implements it
(`dmray.policies.decoding.Decoder`). The class is imported only when a policy acts. Installed packages add modes through
the entry-point group `dmray.decode_modes` (docs/extending.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from dmray.registry import Registry, nearest, short

_NUMBER = re.compile(r"[1-9][0-9]{0,5}")


@dataclass(frozen=True)
class DecodeMode:
    """A decode mode, written in a sweep file as `name`, or as `name:argument` if the mode has an argument.

    `decoder`: "module:Class"; a module that begins with a dot is in `dmray.policies`. The class is called with the
    rollout's fields and the argument. `parse_argument` converts the text after the colon to the argument. It raises a
    ValueError that says which arguments are valid, for example "takes a whole number from 1 on". It must accept only
    one spelling of each value, because trial ids depend on the text. `fit_context(argument, context_length)` returns
    what is wrong with the argument for policies of that context length, or None. `example`: a valid text, for messages.
    """

    name: str
    decoder: str
    example: str
    parse_argument: Callable[[str], Any] | None = None
    fit_context: Callable[[Any, int], str | None] | None = None


class Decode(NamedTuple):
    """A parsed `decode` field: the mode and its argument (None for modes without one)."""

    mode: DecodeMode
    argument: Any

    def problem(self, context_length: int) -> str | None:
        """Why policies of this context length cannot use the mode; None if they can."""
        return self.mode.fit_context(self.argument, context_length) if self.mode.fit_context else None


def positive_number(text: str, what: str = "a whole number") -> int:
    """Parse a whole number from 1 on without leading zeros; a `parse_argument` for modes.

    Raises:
        ValueError: `text` is not such a number. The message says that the mode takes `what`.
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"takes {what} from 1 on")
    return int(text)


def _states_within_context(states: int, context_length: int) -> str | None:
    return None if states <= context_length else f"takes at most context_length ({context_length}) states"


WINDOW = DecodeMode("window", ".window_decoder:WindowDecoder", "window")
STREAM = DecodeMode(
    "stream",
    ".state_decoder:StateDecoder",
    "stream:2",
    parse_argument=partial(positive_number, what="a number of states"),
    fit_context=_states_within_context,
)
RECURRENT = DecodeMode("recurrent", ".state_decoder:StateDecoder", "recurrent")
DECODE_MODES: Registry[DecodeMode] = Registry(
    "decode mode", "dmray.decode_modes", DecodeMode, {mode.name: mode for mode in (WINDOW, STREAM, RECURRENT)}
)


def parse_decode(text: str) -> Decode:
    """Parse the `decode` field of a sweep file, for example "window" or "stream:2".

    Raises:
        ValueError: there is no such mode (the message has the most similar one), or its argument is invalid.
    """
    name, colon, argument = text.partition(":")
    mode = DECODE_MODES.get(name)
    if mode is None or (colon and mode.parse_argument is None):
        raise ValueError(_unknown(text))
    if mode.parse_argument is None:
        return Decode(mode, None)
    try:
        return Decode(mode, mode.parse_argument(argument))
    except ValueError as wrong:
        raise ValueError(f"decode '{short(text)}': {name} {wrong}, for example {mode.example}") from None


def _unknown(text: str) -> str:
    name, _, argument = text.partition(":")
    best = DECODE_MODES.get(nearest(name, DECODE_MODES) or "")
    if best is None:
        known = ", ".join(mode.example for mode in DECODE_MODES.values())
        return f"unknown decode mode '{short(text)}', known: {known}"
    return f"unknown decode mode '{short(text)}', did you mean '{_with_argument(best, argument)}'?"


def _with_argument(mode: DecodeMode, argument: str) -> str:
    """The mode with this argument if it is valid, else the mode's example."""
    if mode.parse_argument is None:
        return mode.name
    try:
        mode.parse_argument(argument)
    except ValueError:
        return mode.example
    return f"{mode.name}:{argument}"
