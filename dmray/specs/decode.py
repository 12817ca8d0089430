"""The registry of decode modes: how a policy's history is fed to its networks, step by step, when it acts.

An entry is light: it says how the mode is written in a sweep file, and names the class that implements it
(`dmray.policies.decoding.Decoder`), which is imported when a policy acts. Installed packages add modes through the
entry-point group `dmray.decode_modes` (docs/extending.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from dmray.registry import Registry, nearest

_NUMBER = re.compile(r"[1-9][0-9]{0,5}")


@dataclass(frozen=True)
class DecodeMode:
    """A decode mode. A sweep file writes it as `name`, or as `name:argument` where it takes an argument.

    `decoder` is "module:Class"; a module that begins with a dot is one of `dmray.policies`. The class is called with
    the rollout's fields and the argument. `parse_argument` turns the text after the colon into the argument. It raises
    a ValueError that says what the mode takes, and accepts one spelling of each value only, as the text is part of
    what identifies a trial. `fit_context(argument, context_length)` says what is wrong with the argument for policies
    of that context length; None if nothing is. `example` is a complete text, for messages.
    """

    name: str
    decoder: str
    example: str
    parse_argument: Callable[[str], Any] | None = None
    fit_context: Callable[[Any, int], str | None] | None = None


class Decode(NamedTuple):
    """A parsed `decode`: the mode, and its argument (None for modes without one)."""

    mode: DecodeMode
    argument: Any

    def problem(self, context_length: int) -> str | None:
        """Why policies of this context length cannot decode so; None if they can."""
        return self.mode.fit_context(self.argument, context_length) if self.mode.fit_context else None


def positive_number(text: str, what: str = "a whole number") -> int:
    """An argument that is a whole number from 1 on, written without leading zeros.

    Raises:
        ValueError: it is not; the message says that the mode takes `what`.
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"takes {what} from 1 on")
    return int(text)


def _states_within_context(states: int, context_length: int) -> str | None:
    return None if states <= context_length else f"at most context_length, {context_length}, states can take turns"


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
    """The mode and the argument that `text` names.

    Raises:
        ValueError: it names none (the message has the nearest one), or its argument is wrong.
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
        raise ValueError(f"decode '{text}': {name} {wrong}, for example {mode.example}") from None


def _unknown(text: str) -> str:
    name, _, argument = text.partition(":")
    best = DECODE_MODES.get(nearest(name, DECODE_MODES) or "")
    if best is None:
        return f"unknown decoding mode '{text}', known: {', '.join(mode.example for mode in DECODE_MODES.values())}"
    return f"unknown decoding mode '{text}', did you mean '{_with_argument(best, argument)}'?"


def _with_argument(mode: DecodeMode, argument: str) -> str:
    """The mode with the argument that was given, if it takes that one."""
    if mode.parse_argument is None:
        return mode.name
    try:
        mode.parse_argument(argument)
    except ValueError:
        return mode.example
    return f"{mode.name}:{argument}"
