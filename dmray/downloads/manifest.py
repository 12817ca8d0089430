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

from dmray.errors import DatasetError
from dmray.file_lock import file_lock
from dmray.files import write_json

MANIFEST_NAME = "dmray-manifest.json"
_BLOCK_BYTES = 2**20
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
    """The hash of an unchanged file, and whether it was seen for the first time."""

    sha256: str
    first_seen: bool

    def __str__(self) -> str:
        state = "seen for the first time, pinned from now on" if self.first_seen else "as it was first seen"
        return f"sha256 {self.sha256}, {state}"


class Manifest:
    """The manifest of a folder. Changes are atomic and made under a lock."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / MANIFEST_NAME

    def get(self, name: str) -> ManifestEntry | None:
        entry = self._read().get(name)
        return None if entry is None else ManifestEntry(**entry)

    def put(self, name: str, entry: ManifestEntry) -> None:
        lock = self.path.with_name(f".{self.path.name}.lock")
        busy = "another process has been writing the manifest for a minute: end it and try again"
        with file_lock(lock, _LOCK_TIMEOUT_S, busy):
            entries = self._read() | {name: asdict(entry)}
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
            entries: dict[str, dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as cause:
            raise DatasetError(f"{self.path}: not a manifest ({cause}); remove it to pin anew") from cause
        return entries


def verify(name: str, folder: Path) -> Verification:
    """Hash the file in `folder` and compare it with the pinned hash; pin it if none is.

    Raises:
        DatasetError: there is no such file, or it has changed.
        StorageError: the manifest cannot be written.
    """
    path, manifest = folder / name, Manifest(folder)
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    digest = sha256_of(path)
    manifest.check(name, digest)
    first = manifest.get(name) is None
    if first:
        manifest.put(name, ManifestEntry(digest, path.stat().st_size, None, now()))
    return Verification(digest, first)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
