"""Commands to a running sweep (run, pause, stop, kill): one small file in its folder that driver and workers read.

Each command has a number. The driver starts workers under a `run` command, and a worker continues only while that
same command is the current one. So every worker exits after a pause, also one that reads the file only after a quick
resume; the driver then starts all trials again under the new `run` command.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from dmray.errors import StorageError
from dmray.files import read_small, write_atomic
from dmray.interruption import interrupt_thread
from dmray.periodic_thread import PeriodicThread
from dmray.records.folders import SweepFolder
from dmray.specs import Spec
from dmray.specs.mistakes import mistakes_of

_log = logging.getLogger(__name__)
_READ_EVERY_S = 1.0
_YEAR_3000_S = 32_503_680_000.0
CommandKind = Literal["run", "pause", "stop", "kill"]
_MEANING = {
    "run": "running",
    "pause": "paused: running trials save a checkpoint and exit",
    "stop": "stopping: running trials save a checkpoint and exit",
    "kill": "killed",
}


def _printable(text: str) -> str:
    """Terminals show it: without escape codes."""
    return "".join(character if character.isprintable() else "?" for character in text)


class SweepCommand(Spec):
    """The content of `.control.json`.

    `resume_command` is the command line that continues the sweep. `sent_by` (user@host) and `time_s` (Unix time) are
    shown to people and decide nothing.
    """

    kind: CommandKind
    number: Annotated[int, Field(ge=0, lt=2**63)]
    sent_by: Annotated[str, AfterValidator(_printable)]
    time_s: Annotated[float, Field(ge=0, le=_YEAR_3000_S)]
    resume_command: Annotated[str, AfterValidator(_printable)]


class TrialPaused(Exception):  # noqa: N818 - no error
    """The trial saved a checkpoint and exited, because a pause, stop or kill was sent to its sweep."""


def read_command(folder: SweepFolder) -> SweepCommand | None:
    """The current command; None if no driver of this version has started the sweep.

    A file that holds no command counts as none. It is named in a warning, and the next command replaces it.

    Raises:
        OSError: the storage does not answer.
    """
    try:
        return SweepCommand.model_validate_json(read_small(folder.control))
    except FileNotFoundError:
        return None
    except ValidationError as invalid:
        _warn_once(folder.control, str(mistakes_of(invalid, SweepCommand)[0]))
        return None
    except OSError as cause:
        if cause.errno not in (errno.EINVAL, errno.EFBIG):
            raise
        _warn_once(folder.control, str(cause.strerror))
        return None


@lru_cache(maxsize=128)
def _warn_once(file: Path, problem: str) -> None:
    _log.warning("%s holds no command and is ignored: %s", file, problem)


def next_command(before: SweepCommand | None, kind: CommandKind, resume_command: str | None = None) -> SweepCommand:
    """A command numbered one higher than `before`. It keeps the resume command of `before` unless one is given."""
    if resume_command is None:
        resume_command = before.resume_command if before else ""
    return SweepCommand(
        kind=kind,
        number=before.number + 1 if before else 1,
        sent_by=f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}",  # a container may have no user name
        time_s=time.time(),
        resume_command=resume_command,
    )


def write_command(folder: SweepFolder, command: SweepCommand) -> None:
    """Make `command` the current one.

    Raises:
        StorageError: a folder is in the place of the file.
    """
    if folder.control.is_dir():
        raise StorageError(f"{folder.control}: is a folder, so no command can be sent; remove it")
    write_atomic(folder.control, command.model_dump_json(indent=2).encode())


def send_command(folder: SweepFolder, kind: CommandKind, resume_command: str | None = None) -> SweepCommand:
    """Write the next command (see `next_command`) and return it."""
    command = next_command(read_command(folder), kind, resume_command)
    write_command(folder, command)
    return command


class CommandWatcher:
    """Tells a worker whether the `run` command that it was started under is still the current one.

    It reads the file once a second at most, so it may be asked in every training step.
    """

    def __init__(self, folder: SweepFolder, number: int) -> None:
        self._folder, self._number = folder, number
        self._read_at_s, self._is_current = float("-inf"), True

    def should_continue(self) -> bool:
        """False once another command has been read, and from then on. True while the file cannot be read."""
        now = time.monotonic()
        if self._is_current and now - self._read_at_s >= _READ_EVERY_S:
            self._read_at_s = now
            try:
                command = read_command(self._folder)
            except OSError:
                return True
            self._is_current = command is None or (command.kind, command.number) == ("run", self._number)
        return self._is_current


def wait_for_resume(folder: SweepFolder) -> bool:
    """Wait while the sweep is paused. Returns True to run on, False to stop.

    Raises:
        KeyboardInterrupt: the sweep is to be killed. (The trials may read that before `listen_for_commands` does.)
    """
    while (command := read_command(folder)) is not None and command.kind == "pause":
        time.sleep(_READ_EVERY_S)
    if command is not None and command.kind == "kill":
        raise KeyboardInterrupt
    return command is None or command.kind == "run"


@contextmanager
def listen_for_commands(folder: SweepFolder, resume_command: str) -> Iterator[None]:
    """Send `run`, then log each new command while the block runs; `kill` interrupts the block's thread."""
    seen, driver = send_command(folder, "run", resume_command), threading.get_ident()

    def watch() -> None:
        nonlocal seen
        try:
            command = read_command(folder)
        except OSError:  # the storage does not answer just now
            return
        if command is None or command == seen:  # compared whole: in a store, another command may win this number
            return
        seen = command
        _log.info("%s (by %s)", _MEANING[command.kind], command.sent_by)
        if command.kind == "kill":
            interrupt_thread(driver)

    with PeriodicThread(watch, _READ_EVERY_S, name="dmray-commands"):
        yield
