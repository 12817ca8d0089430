"""The checksums of a folder of downloads, pinned at the first download.

<folder>/dmray-manifest.json    name -> sha256, size, url, fetched_at
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from dmray.errors import DatasetError, StorageError
from dmray.file_lock import file_lock
from dmray.files import as_storage_error, read_small, write_json

MANIFEST_NAME = "dmray-manifest.json"
_LOCK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class ManifestEntry:
    """A file when it was first seen; `url` is None for a file that dmray did not download."""

    sha256: str
    size: int
    url: str | None
    fetched_at: str


@dataclass(frozen=True)
class Verification:
    """The hash of an unchanged file, whether it was seen for the first time, and why it could not be pinned."""

    sha256: str
    first_seen: bool
    not_pinned: str = ""

    def __str__(self) -> str:
        state = "seen for the first time, pinned from now on" if self.first_seen else "as it was first seen"
        if self.not_pinned:
            state = f"seen for the first time, and not pinned ({self.not_pinned})"
        return f"sha256 {self.sha256}, {state}"


class _Entry(BaseModel, frozen=True, extra="forbid", strict=True):
    """An entry as it stands in the file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    url: str | None
    fetched_at: str


_ENTRY = TypeAdapter(_Entry)


class Manifest:
    """The manifest of a folder. Changes are atomic and made under a lock."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / MANIFEST_NAME

    def get(self, name: str) -> ManifestEntry | None:
        """The entry of a file.

        Raises:
            DatasetError: the manifest, or the entry, is damaged.
        """
        return entry_in(self._read(), name, str(self.path))

    def put(self, name: str, entry: ManifestEntry) -> None:
        lock = self.path.with_name(f".{self.path.name}.lock")
        busy = "another process has been writing the manifest for a minute: end it and try again"
        with file_lock(lock, _LOCK_TIMEOUT_S, busy):
            entries = self._read() | {name: asdict(entry)}
            with as_storage_error(self.path, "make its folder writable"):
                write_json(self.path, dict(sorted(entries.items())))

    def check(self, name: str, sha256: str) -> None:
        """Compare a hash with the pinned one.

        Raises:
            DatasetError: another hash is pinned.
        """
        pinned = self.get(name)
        if pinned is not None and pinned.sha256 != sha256:
            raise DatasetError(
                f"{name}: sha256 is {sha256}, but {pinned.sha256} is pinned in {self.path}; if the new content is the "
                "right one, remove the entry there and fetch again"
            )

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            entries = entries_in(read_small(self.path), str(self.path))
        except FileNotFoundError:
            return {}
        except OSError as cause:
            raise DatasetError(
                f"{self.path}: cannot be read ({cause.strerror or cause}); make it readable, or remove it to pin anew"
            ) from cause
        return entries


def entries_in(content: bytes, where: str) -> dict[str, dict[str, Any]]:
    """The entries, not yet checked, of the manifest at `where` with this content.

    Raises:
        DatasetError: it is not a manifest.
    """
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as cause:
        raise DatasetError(f"{where}: not a manifest ({cause}); remove it to pin anew") from cause
    if not isinstance(entries, dict):
        raise DatasetError(f"{where}: not a manifest (no mapping of names); remove it to pin anew")
    return entries


def entry_in(entries: dict[str, dict[str, Any]], name: str, where: str) -> ManifestEntry | None:
    """The entry of a file in the manifest at `where`.

    Raises:
        DatasetError: it is damaged.
    """
    if name not in entries:
        return None
    try:
        return ManifestEntry(**_ENTRY.validate_python(entries[name]).model_dump())
    except ValidationError as cause:
        what = cause.errors()[0]
        place = ".".join(map(str, (name, *what["loc"])))
        raise DatasetError(f"{where}: {place}: {what['msg']}; remove the entry to pin anew") from cause


def verify(name: str, folder: Path) -> Verification:
    """Hash the file in `folder` and compare it with the pinned hash; pin it if none is.

    Raises:
        DatasetError: there is no such file, or it has changed.
    """
    path, manifest = folder / name, Manifest(folder)
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    digest = sha256_of(path)
    manifest.check(name, digest)
    first = manifest.get(name) is None
    if first:
        try:
            manifest.put(name, ManifestEntry(digest, path.stat().st_size, None, now()))
        except StorageError as cause:  # a folder that is read-only, for example
            return Verification(digest, first, f"{cause}")
    return Verification(digest, first)


def sha256_of(path: Path) -> str:
    """The SHA-256 (hex) of a file.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as cause:
        raise DatasetError(f"{path}: cannot be read ({cause.strerror or cause})") from cause


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
