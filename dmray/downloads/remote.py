"""Reads blocks of a remote file through fsspec: http(s), s3, file.

Each block is requested by its range, so resuming is the same as requesting the next block. A server that ignores ranges
sends the whole file; the length of the answer shows that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import aiohttp
import fsspec

_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10.0, 30.0
_VERSION_KEYS = ("ETag", "Last-Modified", "LastModified", "mtime", "created")


class UnavailableError(Exception):
    """The address does not have the file; another try will not help."""


class InterruptedDownloadError(Exception):
    """The address did not answer, or the answer broke off; another try may help."""


@dataclass(frozen=True)
class RemoteFacts:
    """What the server reports about the file; with equal facts the content is equal."""

    url: str
    size: int | None
    version: str


class Remote:
    """The file at `url`.

    Raises (all methods):
        UnavailableError: the scheme or the file does not exist, or access is denied.
        InterruptedDownloadError: there was no answer, it broke off, or the server failed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S)
        options: dict[str, Any] = {"client_kwargs": {"timeout": timeout}} if url.startswith("http") else {}
        try:
            self._files, self._path = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as cause:
            raise UnavailableError(f"{cause}") from cause

    def facts(self) -> RemoteFacts:
        self._files.invalidate_cache()
        info = self._ask(self._files.info, self._path)
        version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
        return RemoteFacts(self.url, info.get("size"), version)

    def read(self, start: int, end: int | None) -> bytes:
        """Bytes `start` to `end` (None: all), or the whole file if the server does not support ranges."""
        limits = {} if end is None else {"start": start, "end": end}
        content: bytes = self._ask(self._files.cat_file, self._path, **limits)
        return content

    def _ask(self, call: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except Exception as cause:  # each scheme has its own errors
            status = _status(cause)
            if (status is not None and status >= 500) or status in (408, 429):
                raise InterruptedDownloadError(f"the server answers {status}") from cause
            if status is not None:
                raise UnavailableError(f"the server answers {status}") from cause
            if isinstance(cause, FileNotFoundError | PermissionError) and not _network(cause):
                raise UnavailableError(f"no such file, or access is denied ({type(cause).__name__})") from cause
            raise InterruptedDownloadError(f"{type(cause).__name__}: {cause}") from cause


def _chain(error: BaseException) -> list[BaseException]:
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return causes


def _status(error: BaseException) -> int | None:
    """The HTTP status that is behind an error (fsspec hides it behind FileNotFoundError)."""
    found = (each.status for each in _chain(error) if isinstance(each, aiohttp.ClientResponseError))
    return next(found, None)


def _network(error: BaseException) -> bool:
    return any(isinstance(each, aiohttp.ClientError | TimeoutError | ConnectionError) for each in _chain(error))
