"""The ledger of a trial: append-only JSONL, one record a line, the truth that everything else is made from.

A kill at any moment leaves whole lines and at most one torn line at the end. Readers never see the torn line; the next
writer removes it. One process writes a ledger at a time (its caller sees to that), any number may read.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from functools import cache
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from dmray.errors import StorageError
from dmray.files import flush, make_folder, write_json
from dmray.records.disk import open_file, read_file, removed, writing
from dmray.records.fast_decoder import LightRecord, decode_light
from dmray.records.folders import TrialFolder
from dmray.records.records import (
    AttemptFailed,
    AttemptPaused,
    AttemptStarted,
    LedgerRecord,
    StartedOver,
    TrainingExtended,
    TrialDone,
    TrialStopped,
    ledger_line,
)
from dmray.registry import short_repr

_log = logging.getLogger(__name__)
_OF_ATTEMPTS = (AttemptStarted, AttemptFailed, AttemptPaused, TrainingExtended, StartedOver, TrialStopped)
_BLOCK = 65_536
_LONGEST_LINE = 2**26  # an evaluation of a million episodes is half of it
_LONGEST_MARKER = 2**16
_LONGEST_END = 2**12  # a trial's end is 150 bytes
_LONGEST_MESSAGE = 300
_FOLDERS_OF_A_TRIAL = 4  # <storage>/<sweep>/trials/<trial>


class LedgerPrefix(NamedTuple):
    """The beginning of a ledger: its bytes, the lines in them, and their digest."""

    num_bytes: int
    num_records: int
    digest: str


class DoneMarker(TrialDone):
    """DONE.json: the end that the ledger has, of which trial it is, and the ledger at that time.

    Markers of an earlier dmray lack the last two.
    """

    trial_id: str | None = None
    ledger: LedgerPrefix | None = None

    @property
    def end(self) -> TrialDone:
        """The ledger's record."""
        return TrialDone(**{name: getattr(self, name) for name in TrialDone.model_fields})


class Ledger:
    """The writing end. Holds no open file, so it may be kept, dropped and made again at will."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Remove the torn line that a killed writer may have left.

        `create`: make the file and its folder if they are missing. Only the start of an attempt does that: a file that
        is missing later was removed, and a new one would begin in the middle.
        """
        self.path = path
        self._hash, self._num_bytes, self._num_records = _new_hash(), 0, 0
        if not path.exists():
            if create:
                _create(path)
        elif path.stat().st_size != (whole := end_of_whole_lines(path)):
            os.truncate(path, whole)

    def append(self, record: LedgerRecord) -> None:
        """Write one line and hand it to the system; the end of a trial is also forced to the disk.

        Raises:
            StorageError: the disk is full, or the ledger was removed. What was there is as it was.
        """
        line = ledger_line.dump_json(record) + b"\n"
        with self._open(os.O_WRONLY | os.O_APPEND) as stream:
            before = stream.seek(0, os.SEEK_END)
            try:
                with writing(self.path):
                    written = 0
                    while written < len(line):
                        written += stream.write(line[written:])
                    if isinstance(record, TrialDone):
                        os.fsync(stream.fileno())
            except (OSError, StorageError):
                stream.truncate(before)
                raise

    def sync(self) -> LedgerPrefix:
        """Force all lines to the disk: called before anything is written that relies on them. Reads the new lines.

        Raises:
            StorageError: the ledger was removed or cut since the last call.
        """
        with self._open(os.O_RDONLY) as stream:
            with writing(self.path):
                os.fsync(stream.fileno())
            if stream.seek(0, os.SEEK_END) < self._num_bytes:
                raise StorageError(
                    f"{self.path}: was cut to {stream.tell():,} bytes while the trial runs, which had written "
                    f"{self._num_bytes:,}; continue with --resume, which checks what is missing"
                )
            stream.seek(self._num_bytes)
            while block := stream.read(_BLOCK):
                self._hash.update(block)
                self._num_bytes += len(block)
                self._num_records += block.count(b"\n")
        return LedgerPrefix(self._num_bytes, self._num_records, self._hash.hexdigest())

    def require(self) -> None:
        """Check that the ledger is still there, before a file is written whose folder would be made anew.

        Raises:
            StorageError: it was removed.
        """
        if not self.path.exists():
            raise removed(self.path)

    def _open(self, flags: int) -> FileIO:
        with writing(self.path):
            return FileIO(os.open(self.path, flags | os.O_CLOEXEC), "rb" if flags == os.O_RDONLY else "ab")


def ledger_of(records: Iterable[LedgerRecord]) -> tuple[bytes, LedgerPrefix]:
    """The content of a ledger that has these records, and the prefix that is all of it."""
    lines = [ledger_line.dump_json(record) + b"\n" for record in records]
    content, found = b"".join(lines), _new_hash()
    found.update(content)
    return content, LedgerPrefix(len(content), len(lines), found.hexdigest())


def begins_with(path: Path, prefix: LedgerPrefix) -> bool:
    """Whether a ledger begins with exactly those bytes.

    Raises:
        StorageError: it cannot be read.
    """
    found, left = _new_hash(), prefix.num_bytes
    try:
        with open_file(path) as stream:
            while left and (block := stream.read(min(left, _BLOCK))):
                found.update(block)
                left -= len(block)
    except FileNotFoundError:
        pass
    return left == 0 and found.hexdigest() == prefix.digest


def _whole_lines_of(path: Path) -> LedgerPrefix:
    found, num_records, left = _new_hash(), 0, (whole := end_of_whole_lines(path))
    with open_file(path) as stream:
        while left and (block := stream.read(min(left, _BLOCK))):
            found.update(block)
            num_records += block.count(b"\n")
            left -= len(block)
    return LedgerPrefix(whole, num_records, found.hexdigest())


def _new_hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _create(path: Path) -> None:
    """An empty ledger; it and the new folders above it are on the disk, whoever made them."""
    with writing(path):
        make_folder(path.parent)
        path.touch()
    for each in (path, *path.parents[:_FOLDERS_OF_A_TRIAL]):
        with contextlib.suppress(PermissionError):  # a folder above the storage's own
            flush(each)


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
        with open_file(path) as stream:
            size = stream.seek(0, os.SEEK_END)
            if size > _BLOCK:
                stream.seek(size - _BLOCK)
                skipped = len(stream.readline(_BLOCK))
                if skipped < _BLOCK:
                    tail.offset, tail._line = size - _BLOCK + skipped, None
        return tail

    def read(self, at_most: int | None = None) -> list[LightRecord]:
        """The next records, oldest first; none when nothing new is there or the ledger does not exist yet.

        Raises:
            StorageError: a line is no record (file and line are named, and the reader stays before it), the ledger is
                shorter than what was read before, or what stands there is no file.
        """
        with closing(self.records()) as records:
            return list(islice(records, at_most))

    def records(self) -> Generator[LightRecord]:
        """`read` of all, one by one; the reader's place is noted when the generator ends, fails or is closed."""
        decode, offset, number = self._decode, self.offset, 0
        try:
            with open_file(self.path) as stream:
                if stream.seek(0, os.SEEK_END) < offset:
                    raise StorageError(f"{self.path}: was cut to {stream.tell():,} bytes after {offset:,} were read")
                stream.seek(offset)
                while (line := stream.readline(_LONGEST_LINE))[-1:] == b"\n":
                    record = decode(line)
                    offset += len(line)
                    number += 1
                    yield record
            if len(line) == _LONGEST_LINE:
                raise self._damaged(offset, number, f"a line of more than {_LONGEST_LINE:,} bytes")
        except FileNotFoundError:
            return
        except ValidationError as invalid:
            raise self._damaged(offset, number, _first_mistake(invalid)) from None
        finally:
            self.offset = offset
            self._line = None if self._line is None else self._line + number

    def _damaged(self, offset: int, number: int, what: str) -> StorageError:
        place = f"byte {offset}" if self._line is None else self._line + number + 1
        return StorageError(
            f"{self.path}:{place}: not a ledger record ({what}); restore the file from a copy, or delete the trial's "
            "folder to run the trial again"
        )


def read_ledger(path: Path) -> list[LedgerRecord]:
    """All records; none when there is no ledger. A torn last line is ignored.

    Raises:
        StorageError: a line is no record; file and line are named.
    """
    return LedgerTail(path).read()


def write_done_marker(trial: TrialFolder, trial_id: str, done: TrialDone) -> None:
    """Write DONE.json for a ledger that has its end.

    Raises:
        StorageError: the ledger cannot be read, or the disk is full.
    """
    marker = DoneMarker(**dict(done), trial_id=trial_id, ledger=_whole_lines_of(trial.ledger))
    with writing(trial.done):
        write_json(trial.done, marker.model_dump(mode="json"))


def changed_since_done(trial: TrialFolder) -> str | None:
    """A sentence if the ledger of a trial that has ended is not as it was when DONE.json was written.

    Reads the file without decoding it. None also where there is no marker, or one of an earlier dmray.
    """
    marker = read_done_marker(trial)
    if marker is None or marker.ledger is None or begins_with(trial.ledger, marker.ledger):
        return None
    return (
        f"{trial.ledger}: was changed after the trial {marker.status}: it is not the ledger that {trial.done.name} was "
        f"written for; restore it from a copy, remove {trial.done.name} if the change was meant, or delete the trial's "
        "folder to run the trial again"
    )


def read_done_marker(trial: TrialFolder) -> DoneMarker | None:
    """What DONE.json says; None without one.

    The marker repeats the end that the ledger has, so one that is damaged or of another trial is named in a warning
    and counts as none.
    """
    try:
        marker = DoneMarker.model_validate_json(read_file(trial.done, _LONGEST_MARKER))
        if marker.trial_id in (None, trial.path.name):
            return marker
        problem = f"{trial.done}: is of trial {short_repr(marker.trial_id)}, not of {trial.path.name}"
    except FileNotFoundError:
        return None
    except ValidationError as invalid:
        problem = f"{trial.done}: not a done marker ({_first_mistake(invalid)})"
    except StorageError as unreadable:
        problem = str(unreadable)
    warn_once(f"{problem}; the trial's ledger decides instead")
    return None


def read_end(path: Path) -> TrialDone | None:
    """The result that a ledger's last record tells; None if it tells none. Reads the last bytes only.

    Raises:
        StorageError: what stands there is no file, or cannot be read.
    """
    try:
        with open_file(path) as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _LONGEST_END))
            lines = stream.read(_LONGEST_END).splitlines(keepends=True)
    except FileNotFoundError:
        return None
    whole = [line for line in lines if line.endswith(b"\n")]
    try:
        return TrialDone.model_validate_json(whole[-1]) if whole else None
    except ValidationError:  # another record, or damage that a reader of the ledger reports
        return None


def _first_mistake(invalid: ValidationError) -> str:
    """In one line that a terminal shows as it is."""
    first = invalid.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    text = f"{place}: {first['msg']}" if place else str(first["msg"])
    return "".join(each if each.isprintable() else "?" for each in text[:_LONGEST_MESSAGE])


@cache
def warn_once(message: str) -> None:
    """Log a warning the first time: views read a file again and again."""
    _log.warning("%s", message)


def counting(records: Sequence[LedgerRecord]) -> Sequence[LedgerRecord]:
    """The records after the last time that the trial started over; all of them if it did not."""
    starts = [place + 1 for place, record in enumerate(records) if isinstance(record, StartedOver)]
    return records[starts[-1] :] if starts else records


def distinct(records: Iterable[LedgerRecord]) -> list[LedgerRecord]:
    """The records that count: the first of each kind and step, one end, and every attempt with how it ended.

    Where the trial started over, of the records before that only the attempts and how they ended.
    """
    kept: list[LedgerRecord] = []
    seen: set[tuple[str, int]] = set()
    for record in records:
        if isinstance(record, StartedOver):
            kept = [each for each in kept if isinstance(each, _OF_ATTEMPTS)]
            seen.clear()
        elif not isinstance(record, _OF_ATTEMPTS):
            key = (record.kind, 0 if isinstance(record, TrialDone) else record.step)
            if key in seen:
                continue
            seen.add(key)
        kept.append(record)
    return kept


def end_of_whole_lines(path: Path) -> int:
    """The byte after the last line break; 0 when there is none."""
    with open_file(path) as stream:
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
    try:
        with open_file(path) as stream:
            stream.seek(offset)
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(_BLOCK), b""))
    except FileNotFoundError:
        return 0
