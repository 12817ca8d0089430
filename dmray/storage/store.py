"""One folder of an object store, through fsspec: reads and writes whole objects, with two kinds of error."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from dmray.errors import MissingPackageError, StorageError, StoreUnavailableError
from dmray.files import write_atomic
from dmray.records.disk import open_file
from dmray.records.ledger import warn_once
from dmray.redaction import has_secret, without_secrets
from dmray.registry import nearest

T = TypeVar("T")
_VERSION_KEYS = ("ETag", "etag", "generation", "mtime", "created")
_PACKAGES = {"s3": 'pip install "dmray[s3]"', "gs": "pip install gcsfs", "abfs": "pip install adlfs"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": 30,
            "retries": {"max_attempts": 1},
        },  # see outages.py
        "max_concurrency": 1,  # one request an object, so that two versions of it are never mixed
    },
    "file": {"auto_mkdir": True},
}


class Store:
    """The objects below `url`, by their names relative to it. Safe to use from several threads.

    Names become names of files, and anybody may have put an object into the bucket. So those that cannot be the name of
    a file below a folder (`trials/../x`, `a//b`) are not listed; a warning names them.

    Raises (all methods):
        StoreUnavailableError: the store does not answer, or breaks off: a transient error.
        StorageError: the bucket does not exist, there are no credentials, or they do not allow the access.
    """

    def __init__(self, url: str) -> None:
        """Does not contact the store.

        Raises:
            StorageError: the URL's scheme is unknown, or it holds a password.
            MissingPackageError: the package for the scheme is not installed.
        """
        import fsspec

        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        if has_secret(url):  # it would be in the arguments of workers, in commands that are shown, in records
            raise StorageError(
                f"storage: {without_secrets(url)}: leave the credentials out of the address, and set "
                f"{_variables(scheme)} on every machine"
            )
        try:
            self._files, self._root = fsspec.core.url_to_fs(
                self.url, use_listings_cache=False, **_OPTIONS.get(scheme, {})
            )
        except ImportError as cause:
            hint = _PACKAGES.get(scheme, f"install the fsspec package for {scheme}://")
            raise MissingPackageError(f"storage: {self.url}: {cause}; {hint}") from cause
        except ValueError as cause:
            similar = nearest(scheme, fsspec.available_protocols())
            hint = f", did you mean '{similar}://'?" if similar else "; use s3://, gs:// or the path of a folder"
            raise StorageError(f"storage: {self.url}: unknown scheme '{scheme}://'{hint}") from cause

    def list(self, prefix: str) -> dict[str, str]:
        """The version of each object below `prefix`, by name. Equal versions mean equal content."""
        return {name: _version(info) for name, info in self._below(prefix).items()}

    def sizes(self, prefix: str) -> dict[str, int]:
        """The size in bytes of each object below `prefix`, by name."""
        return {name: int(info["size"]) for name, info in self._below(prefix).items()}

    def folders(self, prefix: str) -> tuple[str, ...]:
        """The names of the folders directly below `prefix`, with one request whatever they hold."""
        self._files.invalidate_cache()
        try:
            found = self._files.ls(self._path(prefix), detail=True)
        except FileNotFoundError:
            return ()
        except Exception as cause:
            raise self._failure(cause) from cause
        names = (info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory")
        return tuple(sorted(names))

    def version(self, name: str) -> str | None:
        """The object's version; None if there is no such object."""
        try:
            return _version(self._files.info(self._path(name)))
        except FileNotFoundError:
            return None
        except Exception as cause:  # each scheme raises its own errors
            raise self._failure(cause) from cause

    def read(self, name: str, start: int = 0) -> bytes | None:
        """The object from byte `start` on; None if there is no such object. `start` must be below its size."""
        try:
            if "file" in self._files.protocol:  # a pipe or a device in the folder would be read for ever
                with open_file(Path(self._path(name))) as stream:
                    stream.seek(start)
                    return stream.read()
            content: bytes = self._files.cat_file(self._path(name), start=start or None)
        except FileNotFoundError:
            return None
        except Exception as cause:
            raise self._failure(cause) from cause
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write the object. A failed write leaves the old content."""
        if "file" in self._files.protocol:  # fsspec would overwrite the file in place
            self._ask(lambda: write_atomic(Path(self._path(name)), content))
        else:
            self._ask(lambda: self._files.pipe_file(self._path(name), content))

    def upload(self, name: str, path: Path) -> None:
        """Write a file as an object; a failed upload leaves the old content. (Not for file://, where it would not.)"""
        self._ask(lambda: self._files.put_file(str(path), self._path(name)))

    def create(self, name: str, content: bytes) -> bool:
        """Write the object unless it exists. Returns whether it was written.

        Of two calls at the same moment only one succeeds, in stores with conditional puts (S3, GCS, Azure).
        """
        try:
            self._files.pipe_file(self._path(name), content, mode="create")
        except FileExistsError:
            return False
        except Exception as cause:
            raise self._failure(cause) from cause
        return True

    def remove(self, name: str) -> None:
        """Remove the object, if it exists."""
        try:
            self._files.rm_file(self._path(name))
        except FileNotFoundError:
            return
        except Exception as cause:
            raise self._failure(cause) from cause

    def remove_all(self, prefix: str) -> None:
        """Remove all objects below `prefix`, and the empty objects that stand for folders."""
        self._files.invalidate_cache()
        try:
            self._files.rm(self._path(prefix), recursive=True)
        except FileNotFoundError:
            return
        except Exception as cause:
            raise self._failure(cause) from cause

    def require_writable(self) -> None:
        """Write and remove a small object, so that missing rights are found before any trial starts."""
        probe = f".writable-{uuid4().hex[:8]}"
        self.write(probe, b"")
        self.remove(probe)

    def _below(self, prefix: str) -> dict[str, dict[str, Any]]:
        self._files.invalidate_cache()
        found = self._ask(lambda: self._files.find(self._path(prefix), detail=True))
        start = len(self._root.rstrip("/")) + 1
        objects = {name[start:]: info for name, info in found.items() if info["type"] == "file"}
        return {name: info for name, info in objects.items() if self._is_below(name, prefix)}

    def _is_below(self, name: str, prefix: str) -> bool:
        if name.endswith("/"):  # stands for a folder
            return False
        proper = not {"", ".", ".."}.intersection(name.split("/")) and name.isprintable()
        if not proper or not name.startswith(f"{prefix}/" if prefix else ""):
            warn_once(f"{self.url}: the object {name!a} is none of a sweep, and is ignored; remove it")
            return False
        return True

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}".rstrip("/")

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as cause:
            raise self._failure(cause) from cause

    def _failure(self, cause: Exception) -> StorageError:
        if isinstance(cause, StorageError):
            return cause
        said = (str(cause).splitlines() or [""])[0] or type(cause).__name__
        if isinstance(cause, IsADirectoryError | NotADirectoryError | FileExistsError):
            return StorageError(f"{self.url}: {said}; remove what stands in the place of a sweep's file or folder")
        if isinstance(cause, FileNotFoundError):
            return StorageError(f"{self.url}: {said}; create the bucket, or name another with --storage")
        if isinstance(cause, PermissionError):
            return StorageError(f"{self.url}: access denied: {said}; docs/storage.md lists the rights that are needed")
        if "Credential" in type(cause).__name__:
            return StorageError(
                f"{self.url}: {said}; every machine needs credentials: an instance profile, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY in its environment"
            )
        return StoreUnavailableError(f"{self.url}: the store does not answer: {said}")


def _variables(scheme: str) -> str:
    """The environment variables for a scheme's credentials; fsspec reads FSSPEC_<SCHEME>_<ARGUMENT>."""
    if scheme in ("s3", "s3a"):
        return "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return f"FSSPEC_{scheme.upper()}_PASSWORD (or the other arguments of fsspec's {scheme}://)"


def _version(info: dict[str, Any]) -> str:
    value = next((info[key] for key in _VERSION_KEYS if info.get(key)), "")
    return f"{value.timestamp() if isinstance(value, datetime) else value}-{info.get('size')}"
