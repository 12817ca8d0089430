"""What to do while an object store does not answer: try again for a while, or leave it to the next time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dmray.errors import StorageError, StoreUnavailableError

RETRY_FOR_S = 300.0  # longer outages are rare, and the next attempt starts from what the store has
_RETRY_EVERY_S = 2.0
_log = logging.getLogger(__name__)


class SkipDuringOutage:
    """A call to repeat beside other work (`PeriodicThread`); when the store fails, the next call tries again."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def advance(self) -> bool:
        """Call once; whether it succeeded."""
        try:
            self._call()
        except StorageError:
            return False
        return True


def retry_while_unavailable(call: Callable[[], object]) -> None:
    """Call again while the store does not answer, for `RETRY_FOR_S`.

    Raises:
        StoreUnavailableError: it still does not answer after that time.
    """
    deadline = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            call()
            return
        except StoreUnavailableError as problem:
            if time.monotonic() > deadline:
                raise
            _log.warning("%s; trying again", problem)
            time.sleep(_RETRY_EVERY_S)
