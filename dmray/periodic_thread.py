"""A thread that repeats one call at a fixed interval."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Protocol


class Periodic(Protocol):
    """Something with a short piece of work to be repeated."""

    def advance(self) -> bool:
        """Do the work once; returns whether it succeeded."""


class PeriodicThread:
    """Calls `work.advance()` every `every_s` seconds between `start` and `stop`, or inside a `with` block."""

    def __init__(self, work: Periodic, every_s: float, name: str = "dmray-periodic") -> None:
        """`name` is the thread's, as debuggers show it."""
        self._work, self._every_s = work, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Wait for the running call to end, then end the thread; afterwards only the caller uses `work`."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> PeriodicThread:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._work.advance()
