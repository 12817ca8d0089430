"""A thread that repeats one call at a fixed interval, whatever happens in a call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

_log = logging.getLogger(__name__)


class PeriodicThread:
    """Calls `call` every `every_s` seconds between `start` and `stop`, or inside a `with` block.

    If a call raises, the traceback is logged, and the next call follows: nobody else does what the thread is there for
    (a heartbeat, a deadline). While calls fail in the same way, it is logged once.
    """

    def __init__(self, call: Callable[[], object], every_s: float, name: str = "dmray-periodic") -> None:
        """`name` is the thread's, as debuggers and the log show it."""
        self._call, self._every_s, self._name = call, every_s, name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Wait for the running call to end (at most `timeout_s` seconds), then end the thread."""
        self._stop.set()
        self._thread.join(timeout_s)

    def __enter__(self) -> PeriodicThread:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        logged = ""
        while not self._stop.wait(self._every_s):
            try:
                self._call()
                logged = ""
            except Exception as problem:  # noqa: BLE001 - of any kind: the thread must outlive it
                if logged != (logged := repr(problem)):
                    _log.exception("%s: a call failed; it is repeated every %g s", self._name, self._every_s)
