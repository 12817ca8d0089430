"""What to do while an object store does not answer: retry for a while, or skip until the next time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from dmray.errors import StorageError, StoreUnavailableError

RETRY_FOR_S = 300.0  # after a longer outage the attempt fails, and the next one starts from the store
_RETRY_EVERY_S = 2.0
_log = logging.getLogger(__name__)


def skip_during_outage(call: Callable[[], object]) -> Callable[[], None]:
    """`call` for a `PeriodicThread`: if the store fails, nothing is raised, and the next time is the next try."""

    def skipping() -> None:
        with suppress(StorageError):
            call()

    return skipping


def retry_while_unavailable(call: Callable[[], object]) -> None:
    """Call until the store answers, for at most `RETRY_FOR_S`.

    Raises:
        StoreUnavailableError: the store does not answer within that time.
    """
    deadline = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            call()
            return
        except StoreUnavailableError as problem:
            if time.monotonic() > deadline:
                raise
            _log.warning("%s; retrying", problem)
            time.sleep(_RETRY_EVERY_S)
