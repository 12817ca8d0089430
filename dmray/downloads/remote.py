"""Reads blocks of a remote file: over http(s), and through fsspec from s3:// and file://.

Each block is requested by its range, so resuming is the same as requesting the next block. A server that knows no
ranges sends the whole file. Nothing that a server sends is believed to end: answers are read piece by piece, and each
wait has a limit.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

import aiohttp
import fsspec
import fsspec.asyn

_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S, _ANSWER_TIMEOUT_S = 10.0, 30.0, 60.0
_MOST_REDIRECTS = 5
_SCHEMES = ("http", "https", "s3", "gs", "file")
_VERSION_KEYS = ("ETag", "Last-Modified", "LastModified", "mtime", "created")
_HEADERS = {"Accept-Encoding": "identity"}  # what is compressed has another size than the file
T = TypeVar("T")


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


class Answer(NamedTuple):
    """The bytes that were asked for, or the whole file, in pieces that fit into memory."""

    whole: bool
    pieces: Iterator[bytes]


class Remote(Protocol):
    """A remote file.

    Raises (all methods, and the pieces of an answer):
        UnavailableError: the file does not exist, access is denied, or the server's answers make no sense.
        InterruptedDownloadError: there was no answer, it broke off, or the server failed.
    """

    def facts(self) -> RemoteFacts:
        """What the server reports about the file."""

    def read(self, start: int, end: int | None) -> Answer:
        """Bytes `start` to `end` (None: to the last one), or the whole file if the server knows no ranges."""

    def close(self) -> None:
        """End the connection."""


def open_remote(url: str) -> Remote:
    """The file at `url`; nothing is asked for yet.

    Raises:
        UnavailableError: no such file can exist: the scheme is another one, or the address is not complete.
    """
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    except ValueError as cause:
        raise UnavailableError(f"not an address ({cause})") from cause
    if scheme not in _SCHEMES or "::" in url.partition("//")[0]:
        raise UnavailableError(f"not an address of {', '.join(f'{each}://' for each in _SCHEMES)}")
    if scheme != "file" and not host:
        raise UnavailableError("an address without a server")
    return _HttpRemote(url) if scheme in ("http", "https") else _StoredRemote(url)


def shown(url: str) -> str:
    """`url` without user, password and query, which may hold secrets."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class _StoredRemote:
    """A file of fsspec: of an object store or a local folder."""

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            self._files, self._path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as cause:
            raise UnavailableError(f"{cause}") from cause

    def facts(self) -> RemoteFacts:
        self._files.invalidate_cache()
        info = self._ask(self._files.info, self._path)
        local = self._url.startswith("file:")
        if info.get("type") != "file" or (local and not stat.S_ISREG(Path(self._path).stat().st_mode)):
            raise UnavailableError("not a file")
        version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
        return RemoteFacts(shown(self._url), info.get("size"), version)

    def read(self, start: int, end: int | None) -> Answer:
        content: bytes = self._ask(self._files.cat_file, self._path, start=start, end=end)
        return Answer(False, iter([content]))

    def close(self) -> None:
        """fsspec keeps its connections."""

    def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as cause:
            raise UnavailableError(f"no such file, or access is denied ({type(cause).__name__})") from cause
        except Exception as cause:  # each scheme has its own errors
            raise InterruptedDownloadError(f"{type(cause).__name__}: {cause}") from cause


class _HttpRemote:
    """A file of an http server, read in fsspec's event loop, which runs in a thread of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    def facts(self) -> RemoteFacts:
        try:
            headers = self._headers("HEAD")
        except (UnavailableError, InterruptedDownloadError):  # some servers answer GET only
            headers = self._headers("GET")
        size = _number(headers.get("Content-Length"))
        version = next((headers[key] for key in _VERSION_KEYS if headers.get(key)), "")
        return RemoteFacts(shown(self._url), size, version)

    def read(self, start: int, end: int | None) -> Answer:
        asked = {} if end is None and start == 0 else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        response = self._wait(self._request, "GET", asked)
        if response.status == 206 and asked:
            described = response.headers.get("Content-Range", "")
            found = re.match(r"bytes (\d+)-", described)
            if found is None or int(found[1]) != start:
                response.close()
                raise UnavailableError(f"answers {described or 'no range'!r} where bytes from {start} were asked for")
            return Answer(False, self._pieces(response))
        return Answer(True, self._pieces(response))

    def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            with _named_errors():
                fsspec.asyn.sync(fsspec.asyn.get_loop(), session.close, timeout=_ANSWER_TIMEOUT_S)

    def _headers(self, method: str) -> Any:
        response = self._wait(self._request, method, {})
        response.close()
        return response.headers

    async def _request(self, method: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=limits, auto_decompress=False)
        response = await self._session.request(
            method, self._url, headers=_HEADERS | headers, max_redirects=_MOST_REDIRECTS
        )
        try:
            response.raise_for_status()
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise UnavailableError("sends the file compressed, although that was not asked for")
        except BaseException:
            response.close()
            raise
        return response

    def _pieces(self, response: aiohttp.ClientResponse) -> Iterator[bytes]:
        try:
            while piece := self._wait(response.content.readany):
                yield piece
        finally:
            response.close()

    def _wait(self, call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        with _named_errors():
            answer: T = fsspec.asyn.sync(fsspec.asyn.get_loop(), call, *arguments, timeout=_ANSWER_TIMEOUT_S)
            return answer


@contextmanager
def _named_errors() -> Iterator[None]:
    """Errors of aiohttp as ours."""
    try:
        yield
    except aiohttp.TooManyRedirects as cause:
        raise UnavailableError(f"redirects more than {_MOST_REDIRECTS} times") from cause
    except aiohttp.ClientResponseError as cause:
        transient = cause.status >= 500 or cause.status in (408, 429)
        kind = InterruptedDownloadError if transient else UnavailableError
        raise kind(f"the server answers {cause.status}") from cause
    except (aiohttp.InvalidURL, UnicodeError) as cause:
        raise UnavailableError(f"not an address, or it redirects to none ({type(cause).__name__})") from cause
    except TimeoutError as cause:
        raise InterruptedDownloadError("no answer in time") from cause
    except (aiohttp.ClientError, OSError, ValueError) as cause:
        raise InterruptedDownloadError(f"{type(cause).__name__}: {cause}") from cause


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,18}", text) else None
