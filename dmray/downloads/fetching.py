"""Downloads a file from the first address that has it, and resumes an interrupted download.

    <name>             the file, complete
    <name>.part        the bytes received so far
    <name>.part.json   the remote file's facts, so that bytes of two files are never mixed

After a kill at any moment the next fetch continues. The manifest's entry is written before the file gets its name, so a
file with its name has been checked and is pinned.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from dmray.downloads.manifest import Manifest, ManifestEntry, now, sha256_of
from dmray.downloads.progress import Progress, silent
from dmray.downloads.remote import InterruptedDownloadError, Remote, RemoteFacts, UnavailableError, open_remote, shown
from dmray.errors import DatasetError, DatasetUnavailableError
from dmray.file_lock import file_lock
from dmray.files import as_storage_error, replace_durably
from dmray.registry import short
from dmray.space import require_disk

_BLOCK_BYTES = 8 * 2**20
_LONGEST_PAUSE_S = 30.0
_LOCK_TIMEOUT_S = 3600.0
_WINDOW_S = 60.0  # over which the rate is measured
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_CURE = "set DMRAY_DATASETS to a folder that can be written"


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its local name and its address."""

    name: str
    url: str


@dataclass(frozen=True)
class FetchSettings:
    """Which addresses to try, and how often. Mirrors come first, in their order, the publisher's address last.

    A mirror is an address (`http(s)://`, `s3://`, `file://`) that has the file under its name, or under the path of its
    published address. An interrupted download is tried again, up to `attempts` times in a row without a new block. An
    address that sends less than `least_bytes_per_s` in a minute, does not finish within `most_s`, or has more than
    `most_bytes` is given up for the next one.
    """

    mirrors: tuple[str, ...] = ()
    offline: bool = False
    attempts: int = 5
    first_pause_s: float = 1.0
    least_bytes_per_s: int = 4096
    most_s: float = 12 * 3600.0
    most_bytes: int = 64 * 2**30
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def from_environment(cls) -> FetchSettings:
        """$DMRAY_MIRRORS, comma separated, and $DMRAY_OFFLINE (1 or 0).

        Raises:
            DatasetError: DMRAY_OFFLINE is neither yes nor no.
        """
        mirrors = (mirror.strip() for mirror in os.environ.get("DMRAY_MIRRORS", "").split(","))
        offline = os.environ.get("DMRAY_OFFLINE", "").strip()
        if offline.lower() not in (*_YES, *_NO):
            raise DatasetError(f"DMRAY_OFFLINE={short(offline)}: neither yes nor no; set it to 1 or 0")
        return cls(tuple(mirror for mirror in mirrors if mirror), offline.lower() in _YES)

    def addresses(self, remote: RemoteFile) -> list[str]:
        """Every address to try, in order."""
        path = urlsplit(remote.url).path
        mirrored = [f"{mirror.rstrip('/')}{place}" for mirror in self.mirrors for place in (f"/{remote.name}", path)]
        return list(dict.fromkeys([*mirrored, remote.url]))


def forbidden(folder: Path, url: str) -> str:
    """Why a file that is not in `folder` is not downloaded with DMRAY_OFFLINE."""
    return f"not in {folder}, and DMRAY_OFFLINE forbids a download of {url}"


def fetch(
    remote: RemoteFile,
    folder: Path,
    settings: FetchSettings,
    check: Callable[[Path], None] = lambda path: None,
    progress: Progress = silent,
) -> Path:
    """The path of the file in `folder`; downloaded first if it is not there, by one process at a time.

    `check` gets the path of the complete download before it has its name, and raises DatasetError if it is not the
    right kind of file. A file that is there is returned without a lock, so `folder` may be read-only.

    Raises:
        DatasetError: no address has it (all are named, with what happened), its content is not the pinned one, or it is
            not in `folder` and `settings.offline`.
        DatasetUnavailableError: no address has it, and one did not answer or broke off.
        StorageError: `folder` cannot be written or has no room, or another process does not finish its download.
    """
    path, manifest = folder / remote.name, Manifest(folder)
    if path.is_file():  # it is whole and pinned
        _check_size(path, manifest)
        return path
    if settings.offline:
        raise DatasetError(f"{remote.name}: {forbidden(folder, remote.url)}")
    busy = "another process has been downloading this file for an hour: wait for it, or end it and try again"
    lock = file_lock(folder / f".{remote.name}.lock", _LOCK_TIMEOUT_S, busy, unwritable=_CURE)
    with as_storage_error(folder, _CURE), lock:
        if path.is_file():
            _check_size(path, manifest)
            return path
        problems, may_work_later = [], False
        for address in settings.addresses(remote):
            try:
                with closing(open_remote(address)) as source:
                    part = _download(source, path, manifest.get(path.name), settings, progress)
                _pin(part, path, shown(address), manifest, check)
            except (UnavailableError, InterruptedDownloadError, DatasetError) as problem:
                problems.append(f"  {_shown(address)}: {problem}")
                may_work_later |= isinstance(problem, InterruptedDownloadError)
            else:
                replace_durably(part, path)
                _part_facts(path).unlink(missing_ok=True)
                return path
    kind = DatasetUnavailableError if may_work_later else DatasetError
    raise kind(
        f"{remote.name}: cannot be downloaded:\n"
        + "\n".join(problems)
        + f"\nName an address that has it in DMRAY_MIRRORS, or put the file into {folder} by hand"
    )


def fetch_pinned(
    address: str, path: Path, pinned: ManifestEntry, settings: FetchSettings, progress: Progress = silent
) -> None:
    """Download the file at `address` to `path`, replacing what is there. The caller holds a lock for `path`.

    Raises:
        DatasetError: the address does not have it, or its content is not the pinned one.
        InterruptedDownloadError: the address does not answer.
        StorageError: there is no room for it. OSError: the folder of `path` cannot be written.
    """
    try:
        with closing(open_remote(address)) as source:
            part = _download(source, path, pinned, settings, progress)
    except UnavailableError as problem:
        raise DatasetError(f"{_shown(address)}: {problem}") from problem
    if (digest := sha256_of(part)) != pinned.sha256:
        part.unlink()
        raise DatasetError(f"{_shown(address)}: sha256 is {digest}, but {pinned.sha256} is pinned beside it")
    replace_durably(part, path)
    _part_facts(path).unlink(missing_ok=True)


def _pin(part: Path, path: Path, address: str, manifest: Manifest, check: Callable[[Path], None]) -> None:
    """Check the complete download and pin its hash; a wrong file is removed."""
    try:
        check(part)
        digest = sha256_of(part)
        manifest.check(path.name, digest)
    except DatasetError:
        part.unlink()
        raise
    if manifest.get(path.name) is None:
        manifest.put(path.name, ManifestEntry(digest, part.stat().st_size, address, now()))


class _Pace:
    """Notes what arrives from one address, and gives it up when it is too slow or takes too long."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings, self._begun_s = settings, settings.clock()
        self.restart()

    def restart(self) -> None:
        """Begin to measure anew: the time until now was a pause."""
        self._window_s, self._received = self._settings.clock(), 0

    def note(self, received: int) -> None:
        """So many bytes have arrived.

        Raises:
            UnavailableError: they are too few, or it has taken too long.
        """
        now_s, self._received = self._settings.clock(), self._received + received
        if now_s - self._begun_s > self._settings.most_s:
            raise UnavailableError(f"not complete after {self._settings.most_s / 3600:g} hours")
        if now_s - self._window_s < _WINDOW_S:
            return
        rate = self._received / (now_s - self._window_s)
        if rate < self._settings.least_bytes_per_s:
            raise UnavailableError(f"sends {rate:z,.0f} bytes a second, less than {self._settings.least_bytes_per_s:,}")
        self.restart()


def _download(
    source: Remote, path: Path, pinned: ManifestEntry | None, settings: FetchSettings, progress: Progress
) -> Path:
    """Download the rest of the file; an interruption after new blocks starts the count of attempts again."""
    part, pace = path.with_name(f"{path.name}.part"), _Pace(settings)
    failures, pause_s = 0, settings.first_pause_s
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            facts = source.facts()
            most = min(settings.most_bytes, pinned.size if pinned else settings.most_bytes)
            if facts.size is not None and (facts.size > most or (pinned and facts.size != pinned.size)):
                allowed = f"{most:,} are pinned" if pinned else f"at most {most:,} are expected"
                raise UnavailableError(f"has {facts.size:,} bytes, {allowed}")
            _begin(part, _part_facts(path), facts)
            _fill(source, facts, part, most, pace, partial(_show, progress, path.name, facts.size))
            if source.facts() == facts:
                return part
            raise InterruptedDownloadError("the file changed while it was read")
        except InterruptedDownloadError:
            pace.note(0)
            progressed = part.exists() and part.stat().st_size > before
            failures, pause_s = (1, settings.first_pause_s) if progressed else (failures + 1, pause_s)
            if failures >= settings.attempts:
                raise
            settings.sleep(min(pause_s, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0))
            pause_s *= 2
            pace.restart()


def _begin(part: Path, facts_file: Path, facts: RemoteFacts) -> None:
    """Keep the part if it is of the same remote file, else start over; check that the disk has room for the rest."""
    text = json.dumps(asdict(facts)).encode()
    size = part.stat().st_size if part.exists() else None
    known = facts_file.is_file() and facts_file.read_bytes() == text
    if size is None or not known or (facts.size is not None and size > facts.size):
        part.unlink(missing_ok=True)
        facts_file.write_bytes(text)
        part.touch()
    require_disk(part.parent, (facts.size or 0) - part.stat().st_size, "the rest of the file", _CURE)


def _fill(
    source: Remote, facts: RemoteFacts, part: Path, most: int, pace: _Pace, progress: Callable[[int], None]
) -> None:
    """Append blocks until the part has the size that the server reports; a block that is not whole is dropped."""
    with part.open("ab") as stream:
        if facts.size is None:
            stream.truncate(0)
        progress(stream.tell())
        while facts.size is None or stream.tell() < facts.size:
            start = stream.seek(0, os.SEEK_END)
            end = None if facts.size is None else min(start + _BLOCK_BYTES, facts.size)
            whole, pieces = source.read(start, end)
            if whole:  # the server knows no ranges
                stream.truncate(0)
                start, end = 0, facts.size
            try:
                for piece in pieces:
                    stream.write(piece)
                    pace.note(len(piece))
                    done = stream.tell()
                    if done > (most if end is None else end):
                        raise UnavailableError(f"sends more than {most if end is None else end - start:,} bytes")
                    if end is None:
                        require_disk(part.parent, len(piece), "the rest of the file", _CURE)
                if end is not None and stream.tell() != end:
                    received = stream.tell() - start
                    raise InterruptedDownloadError(f"received {received} bytes instead of {end - start}")
            except BaseException:
                stream.truncate(start)
                raise
            finally:
                _close(pieces)
            stream.flush()
            progress(stream.tell())
            if facts.size is None:
                break


def _close(pieces: Iterator[bytes]) -> None:
    if isinstance(pieces, Generator):
        pieces.close()


def _show(progress: Progress, name: str, total: int | None, done: int) -> None:
    progress(name, done, total)


def _check_size(path: Path, manifest: Manifest) -> None:
    entry, size = manifest.get(path.name), path.stat().st_size
    if entry is not None and entry.size != size:
        raise DatasetError(
            f"{path}: has {size:,} bytes, and {entry.size:,} when it was fetched; remove it and fetch it again"
        )


def _shown(address: str) -> str:
    try:
        return shown(address)
    except ValueError:  # not an address; perhaps with a password before its @
        return address.rpartition("@")[2]


def _part_facts(path: Path) -> Path:
    return path.with_name(f"{path.name}.part.json")
