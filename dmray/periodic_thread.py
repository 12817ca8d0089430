"""Keeps a mirror going beside the sweep."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Protocol


class Periodic(Protocol):
    """Something that does a bounded piece of work when asked."""

    def advance(self) -> bool: ...


class PeriodicThread:
    """Calls `mirror.advance()` every `every_s` seconds between `start` and `stop`, or inside a `with`."""

    def __init__(self, mirror: Periodic, every_s: float) -> None:
        self._mirror, self._every_s = mirror, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow-mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the call under way has ended; afterwards the mirror is the caller's alone again."""
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
            self._mirror.advance()
