"""What a tracker does while its server or disk fails: say so once, try ever less often, and say what is missing.

The ledgers hold all records, so nothing is lost, and training does not wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 30.0
_CLOSING_TRIES = 3
CLOSING_S = 600.0  # for a tracker at the end of a sweep; what is left then is for a replay


@dataclass(frozen=True)
class Lag:
    """How far a tracker is behind: ledger records not known to be there, since when, and why (None: it works)."""

    records: int
    behind_s: float
    problem: str | None


class Outage:
    """Whether the tracker `name` works, since when it does not, and when it is tried again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._problem: str | None = None
        self._pause_s, self._next_try = 0.0, 0.0
        self._up_to_date_at = time.monotonic()

    @property
    def pausing(self) -> bool:
        """Whether it failed a moment ago and is not tried again yet."""
        return time.monotonic() < self._next_try

    def lag(self, records: int) -> Lag:
        """The lag of a tracker that lacks so many records."""
        behind_s = time.monotonic() - self._up_to_date_at if records or self._problem else 0.0
        return Lag(records, behind_s, self._problem)

    def note(self, problem: str | None) -> None:
        """Take in how an update ended (None: well). Log when that changes; pause longer after each failure."""
        if problem is None:
            if self._problem is not None:
                _log.info("%s has caught up", self._name)
            self._pause_s, self._up_to_date_at = 0.0, time.monotonic()
        else:
            if self._problem is None:
                _log.warning("%s takes no records (%s); training goes on, they follow later", self._name, problem)
            self._pause_s = min(max(1.0, 2 * self._pause_s), _LONGEST_PAUSE_S)
            self._next_try = time.monotonic() + self._pause_s
        self._problem = problem

    def try_to_close(self, close: Callable[[], bool]) -> None:
        """Call `close` until it is true, three times at most, without the pause after a failure."""
        for tries_left in reversed(range(_CLOSING_TRIES)):
            self._next_try = 0.0
            if close():
                return
            time.sleep(1.0 if tries_left else 0.0)

    def last_word(self, lag: Lag, sweep: Path) -> Lag:
        """`lag` as it is at the end; a warning with the command that adds what is missing."""
        if lag.problem:
            _log.warning(
                "%s lacks %d records (%s); --resume adds them, or: python -m dmray.track replay %s",
                *(self._name, lag.records, lag.problem, sweep),
            )
        return lag
