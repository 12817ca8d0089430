"""`log.txt` of a trial: what its attempts did, for people. The record is the ledger; this file may be incomplete."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ATTEMPT = " attempt {} on "  # marks the first line of an attempt


class TrialLog:
    """Appends lines with their time. What cannot be written is left out."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, text: str) -> None:
        """Append `text`; further lines of it are indented."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(f"{stamp} " + text.rstrip("\n").replace("\n", "\n    ") + "\n")
        except OSError:
            pass  # a full disk fails the trial where it writes its ledger

    def begin(self, attempt: int, host: str, process: int, device: str) -> None:
        """An attempt begins."""
        self.write(f"{_ATTEMPT.format(attempt).lstrip()}{host}, process {process}, {device}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Write the block's warnings too: those of `warnings`, and of `logging` in this thread."""
        handler, before = _Handler(self), warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any) -> None:
            self.write(f"{category.__name__}: {message} ({filename}:{lineno})")
            before(message, category, filename, lineno, *more)

        logging.getLogger().addHandler(handler)
        warnings.showwarning = show  # type: ignore[assignment]
        try:
            yield
        finally:
            warnings.showwarning = before
            logging.getLogger().removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, log: TrialLog) -> None:
        super().__init__(logging.WARNING)
        self._log, self._thread = log, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._log.write(f"{record.levelname.lower()}: {record.getMessage()}")


def lines_of_attempt(text: str, attempt: int) -> str:
    """The part of a log that one attempt wrote; empty when there is none."""
    kept: list[str] = []
    inside = False
    for line in text.splitlines(keepends=True):
        if line[19:28] == " attempt ":
            inside = line[19:].startswith(_ATTEMPT.format(attempt))
        if inside:
            kept.append(line)
    return "".join(kept)
