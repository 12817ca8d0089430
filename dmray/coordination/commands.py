"""Orders to a sweep: run, pause, stop, kill, through one small file in its folder that driver and workers read.

Each order has a number. A worker takes trials up and trains on only while the order it was sent out under stands. So
all leave after a pause, even those that a quick resume overtook, and the driver sends them out again together.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from pydantic import ValidationError

from dmray.files import write_atomic
from dmray.records.folders import SweepFolder
from dmray.specs import Spec

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0
CommandKind = Literal["run", "pause", "stop", "kill"]
_MEANING = {
    "run": "goes on",
    "pause": "paused: running trials save and leave",
    "stop": "stopping: running trials save and leave",
    "kill": "killed",
}


class SweepCommand(Spec):
    """What `.control.json` holds. `again` is the command that continues the sweep; `time_s` and `by` are for people."""

    kind: CommandKind
    number: int
    by: str
    time_s: float
    again: str


class TrialPaused(Exception):  # noqa: N818 - no error
    """The trial saved its state and left, because the order it was sent out under stands no longer."""


def read_command(folder: SweepFolder) -> SweepCommand | None:
    """What holds now; None where no driver of this version ever began."""
    try:
        return SweepCommand.model_validate_json(folder.control.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def next_command(before: SweepCommand | None, kind: CommandKind, again: str | None = None) -> SweepCommand:
    """The order that follows `before`; `again` is kept unless it is given."""
    return SweepCommand(
        kind=kind,
        number=before.number + 1 if before else 1,
        by=f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}",  # a container may have no names
        time_s=time.time(),
        again=again if again is not None else (before.again if before else ""),
    )


def write_command(folder: SweepFolder, order: SweepCommand) -> None:
    """Put `order` in the place of the one that held."""
    write_atomic(folder.control, order.model_dump_json(indent=2).encode())


def send_command(folder: SweepFolder, kind: CommandKind, again: str | None = None) -> SweepCommand:
    """Replace the order; `again` is kept unless it is given."""
    order = next_command(read_command(folder), kind, again)
    write_command(folder, order)
    return order


class CommandWatcher:
    """The order that a worker was sent out under; the file is looked at once a second at most."""

    def __init__(self, folder: SweepFolder, number: int) -> None:
        self._folder, self._number = folder, number
        self._looked_at, self._stands = float("-inf"), True

    def still_holds(self) -> bool:
        """Whether to go on. What cannot be read changes nothing."""
        now = time.monotonic()
        if self._stands and now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            try:
                order = read_command(self._folder)
            except OSError:
                return True
            self._stands = order is None or (order.kind, order.number) == ("run", self._number)
        return self._stands


def wait_for_resume(folder: SweepFolder) -> bool:
    """Wait while the sweep is paused; whether it goes on (else it is to stop).

    Raises:
        KeyboardInterrupt: it is killed; the trials saw that, and left, before `obeying` did.
    """
    while (order := read_command(folder)) is not None and order.kind == "pause":
        time.sleep(_LOOK_EVERY_S)
    if order is not None and order.kind == "kill":
        raise KeyboardInterrupt
    return order is None or order.kind == "run"


@contextmanager
def listen_for_commands(folder: SweepFolder, again: str) -> Iterator[None]:
    """Begin with the order to run; beside the block, tell of each new one, and end it as Ctrl-C does on `kill`."""
    seen, over = send_command(folder, "run", again), threading.Event()

    def watch() -> None:
        nonlocal seen
        while not over.wait(_LOOK_EVERY_S):
            try:
                order = read_command(folder)
            except OSError:
                continue  # the storage is away for a moment
            if order is None or order == seen:  # a store may have another order of this number, which then holds
                continue
            seen = order
            _log.info("%s (by %s)", _MEANING[order.kind], order.by)
            if order.kind == "kill":
                os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch, name="dmray-control", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
