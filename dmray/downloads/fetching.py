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
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from dmray.downloads.manifest import Manifest, ManifestEntry, now, sha256_of
from dmray.downloads.progress import Progress, silent
from dmray.downloads.remote import InterruptedDownloadError, Remote, RemoteFacts, UnavailableError
from dmray.errors import DatasetError
from dmray.file_lock import file_lock
from dmray.files import replace_durably

_BLOCK_BYTES = 8 * 2**20
_LONGEST_PAUSE_S = 30.0
_LOCK_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its local name and its address."""

    name: str
    url: str


@dataclass(frozen=True)
class FetchSettings:
    """Which addresses to try, and how often. Mirrors come first, in their order, the publisher's address last.

    A mirror is an address (`http(s)://`, `s3://`, `file://`) that has the file under its name, or under the path of its
    published address. An interrupted download is tried again, up to `attempts` times in a row without a new byte.
    """

    mirrors: tuple[str, ...] = ()
    offline: bool = False
    attempts: int = 5
    first_pause_s: float = 1.0
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def from_environment(cls) -> FetchSettings:
        """$DMRAY_MIRRORS, comma separated, and $DMRAY_OFFLINE (1, true, yes)."""
        mirrors = (mirror.strip() for mirror in os.environ.get("DMRAY_MIRRORS", "").split(","))
        offline = os.environ.get("DMRAY_OFFLINE", "").lower() in ("1", "true", "yes")
        return cls(tuple(mirror for mirror in mirrors if mirror), offline)

    def addresses(self, remote: RemoteFile) -> list[str]:
        """Every address to try, in order."""
        path = urlsplit(remote.url).path
        mirrored = [f"{mirror.rstrip('/')}{place}" for mirror in self.mirrors for place in (f"/{remote.name}", path)]
        return list(dict.fromkeys([*mirrored, remote.url]))


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
        DatasetError: no address has it (all are named, with what happened), its content is not the pinned one, the disk
            is too small, or it is not in `folder` and `settings.offline`.
        StorageError: `folder` cannot be written, or another process does not finish its download.
    """
    path, manifest = folder / remote.name, Manifest(folder)
    if path.is_file():  # it is whole and pinned
        _check_size(path, manifest)
        return path
    if settings.offline:
        raise DatasetError(f"{remote.name}: not in {folder}, and DMRAY_OFFLINE forbids a download of {remote.url}")
    busy = "another process has been downloading this file for an hour: wait for it, or end it and try again"
    with file_lock(folder / f".{remote.name}.lock", _LOCK_TIMEOUT_S, busy):
        if path.is_file():
            _check_size(path, manifest)
            return path
        problems = []
        for address in settings.addresses(remote):
            try:
                part = _download(address, path, settings, progress)
                _pin(part, path, address, manifest, check)
            except (UnavailableError, InterruptedDownloadError, DatasetError) as problem:
                problems.append(f"  {address}: {problem}")
            else:
                replace_durably(part, path)
                _part_facts(path).unlink()
                return path
    raise DatasetError(
        f"{remote.name}: cannot be downloaded:\n"
        + "\n".join(problems)
        + f"\nName an address that has it in DMRAY_MIRRORS, or put the file into {folder} by hand"
    )


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


def _download(address: str, path: Path, settings: FetchSettings, progress: Progress) -> Path:
    """Download the rest of the file; an interruption after new bytes starts the count of attempts again."""
    source, part = Remote(address), path.with_name(f"{path.name}.part")
    failures, pause_s = 0, settings.first_pause_s
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            facts = source.facts()
            _begin(part, _part_facts(path), facts)
            _fill(source, facts, part, partial(_show, progress, path.name, facts.size))
            if source.facts() == facts:
                return part
            raise InterruptedDownloadError("the file changed while it was read")
        except InterruptedDownloadError:
            progressed = part.exists() and part.stat().st_size > before
            failures, pause_s = (1, settings.first_pause_s) if progressed else (failures + 1, pause_s)
            if failures >= settings.attempts:
                raise
            settings.sleep(min(pause_s, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0))
            pause_s *= 2


def _begin(part: Path, facts_file: Path, facts: RemoteFacts) -> None:
    """Keep the part if it is of the same remote file, else start over; check that the disk has room for the rest."""
    text = json.dumps(asdict(facts))
    if not part.exists() or not facts_file.exists() or facts_file.read_text(encoding="utf-8") != text:
        part.unlink(missing_ok=True)
        facts_file.write_text(text, encoding="utf-8")
        part.touch()
    missing = (facts.size or 0) - part.stat().st_size
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise DatasetError(f"{part.parent} has {free:,} bytes free, the rest of the file needs {missing:,}")


def _fill(source: Remote, facts: RemoteFacts, part: Path, progress: Callable[[int], None]) -> None:
    """Append blocks until the part has the size that the server reports."""
    with part.open("ab") as stream:
        done = stream.tell()
        progress(done)
        while facts.size is None or done < facts.size:
            end = None if facts.size is None else min(done + _BLOCK_BYTES, facts.size)
            content = source.read(done, end)
            if end is None or len(content) == facts.size:  # the server knows no ranges, or no sizes
                stream.truncate(0)
                done = 0
            elif len(content) != end - done:
                raise InterruptedDownloadError(f"received {len(content)} bytes instead of {end - done}")
            stream.write(content)
            stream.flush()
            done += len(content)
            progress(done)
            if facts.size is None:
                break


def _show(progress: Progress, name: str, total: int | None, done: int) -> None:
    progress(name, done, total)


def _check_size(path: Path, manifest: Manifest) -> None:
    entry, size = manifest.get(path.name), path.stat().st_size
    if entry is not None and entry.size != size:
        raise DatasetError(
            f"{path}: has {size:,} bytes, and {entry.size:,} when it was fetched; remove it and fetch it again"
        )


def _part_facts(path: Path) -> Path:
    return path.with_name(f"{path.name}.part.json")
