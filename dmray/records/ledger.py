"""The ledger of a trial: append-only JSONL, one record a line, the truth that everything else is made from.

A kill at any moment leaves whole lines and at most one torn line at the end. Readers never see the torn line; the next
writer removes it. One process writes a ledger at a time (its caller sees to that), any number may read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from functools import cache
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from dmray.errors import StorageError
from dmray.records.fast_decoder import LightRecord, decode_light
from dmray.records.folders import TrialFolder
from dmray.records.records import (
    AttemptFailed,
    AttemptPaused,
    AttemptStarted,
    LedgerRecord,
    TrialDone,
    TrialStopped,
    ledger_line,
)

_log = logging.getLogger(__name__)
_BLOCK = 65_536


class Ledger:
    """The writing end. Holds no open file, so it may be kept, dropped and made again at will."""

    def __init__(self, path: Path) -> None:
        """Make the ledger's folder and remove the torn line that a killed writer may have left."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size != (whole := end_of_whole_lines(path)):
            os.truncate(path, whole)

    def append(self, record: LedgerRecord) -> None:
        """Write one line and hand it to the system; the end of a trial is also forced to the disk.

        Raises:
            OSError: the disk is full or gone; the ledger is left as it was.
        """
        line = ledger_line.dump_json(record) + b"\n"
        with self.path.open("ab", buffering=0) as stream:
            before = stream.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(line):
                    written += stream.write(line[written:])
                if isinstance(record, TrialDone):
                    os.fsync(stream.fileno())
            except OSError:
                stream.truncate(before)
                raise


class LedgerTail:
    """Reads a ledger that grows: each call gives the whole lines that came since the last."""

    def __init__(self, path: Path, *, light: bool = False) -> None:
        """`light`: give light records (`dmray.records.fast_decoder`), several times faster."""
        self.path = path
        self.offset = 0
        self._line: int | None = 0
        self._decode: Callable[[bytes], LightRecord] = decode_light if light else ledger_line.validate_json

    @classmethod
    def near_end(cls, path: Path, *, light: bool = False) -> LedgerTail:
        """Begin with the last records of a ledger that exists: those in its last 64 KiB, all if they have one line."""
        tail = cls(path, light=light)
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            if size > _BLOCK:
                stream.seek(size - _BLOCK)
                skipped = len(stream.readline())
                if skipped < _BLOCK:
                    tail.offset, tail._line = size - _BLOCK + skipped, None
        return tail

    def read(self, at_most: int | None = None) -> list[LightRecord]:
        """The next records, oldest first; none when nothing new is there or the ledger does not exist yet.

        Raises:
            StorageError: a line is no record; file and line are named, and the reader stays before it.
        """
        with closing(self.records()) as records:
            return list(islice(records, at_most))

    def records(self) -> Generator[LightRecord]:
        """`read` of all, one by one; the reader's place is noted when the generator ends, fails or is closed."""
        if not self.path.exists():
            return
        decode, offset, number = self._decode, self.offset, 0
        try:
            with self.path.open("rb", _BLOCK) as stream:
                stream.seek(offset)
                for line in stream:
                    if line[-1:] != b"\n":
                        return
                    record = decode(line)
                    offset += len(line)
                    number += 1
                    yield record
        except ValidationError as invalid:
            place = f"byte {offset}" if self._line is None else self._line + number + 1
            raise StorageError(
                f"{self.path}:{place}: not a ledger record ({invalid.errors()[0]['msg']}); "
                "restore the file from a copy, or delete the trial's folder to run the trial again"
            ) from None
        finally:
            self.offset = offset
            self._line = None if self._line is None else self._line + number


def read_ledger(path: Path) -> list[LedgerRecord]:
    """All records; none when there is no ledger. A torn last line is ignored.

    Raises:
        StorageError: a line is no record; file and line are named.
    """
    return LedgerTail(path).read()


def read_done_marker(trial: TrialFolder) -> TrialDone | None:
    """What DONE.json says; None without one.

    The marker repeats the end that the ledger has, so a damaged one is named in a warning and counts as none.
    """
    try:
        content = trial.done.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return TrialDone.model_validate_json(content)
    except ValidationError as invalid:
        _warn_once(
            f"{trial.done}: not a done marker ({invalid.errors()[0]['msg']}); the trial's ledger decides instead"
        )
        return None


@cache
def _warn_once(message: str) -> None:
    """Views read a marker again and again."""
    _log.warning("%s", message)


def distinct(records: Iterable[LedgerRecord]) -> list[LedgerRecord]:
    """The records that count: the first of each kind and step, one end, and every attempt with how it ended."""
    kept: list[LedgerRecord] = []
    seen: set[tuple[str, int]] = set()
    for record in records:
        if not isinstance(record, AttemptStarted | AttemptFailed | AttemptPaused | TrialStopped):
            key = (record.kind, 0 if isinstance(record, TrialDone) else record.step)
            if key in seen:
                continue
            seen.add(key)
        kept.append(record)
    return kept


def end_of_whole_lines(path: Path) -> int:
    """The byte after the last line break; 0 when there is none."""
    with path.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            stream.seek(start)
            found = stream.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def whole_lines_after(path: Path, offset: int) -> int:
    """How many whole lines a ledger holds from byte `offset` on; 0 when there is no ledger."""
    if not path.exists() or path.stat().st_size <= offset:
        return 0
    with path.open("rb") as stream:
        stream.seek(offset)
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(_BLOCK), b""))
