"""An HTTP server whose misbehaviour is scripted, request by request."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler", bytes], None]


class Server(ThreadingHTTPServer):
    """Serves `files` by path. The next GETs are answered by `script`, first come, first served, then properly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.script: list[Answer] = []
        self.heads: list[int] = []  # statuses of the next HEADs
        self.ranges: list[str | None] = []  # the Range header of each GET
        self.etag = "one"
        self.knows_ranges = True
        self.unsized: set[str] = set()  # paths whose HEAD says no length

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        if self.server.heads:
            self.refuse(self.server.heads.pop(0))
        elif self.path not in self.server.files:
            self.refuse(404)
        else:
            self.headers_for(200, None if self.path in self.server.unsized else len(self.server.files[self.path]))

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        content = self.server.files.get(self.path)
        if content is None:
            self.refuse(404)
        elif self.server.script:
            self.server.script.pop(0)(self, content)
        else:
            self.serve(content)

    def serve(self, content: bytes, status: int = 200) -> None:
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and self.server.knows_ranges:
            start, last = int(asked[1]), int(asked[2] or len(content) - 1)
            part = content[start : last + 1]
            self.headers_for(206, len(part), f"bytes {start}-{start + len(part) - 1}/{len(content)}")
            self.wfile.write(part)
        else:
            self.headers_for(status, len(content))
            self.wfile.write(content)

    def headers_for(self, status: int, length: int | None, content_range: str | None = None) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("ETag", self.server.etag)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def properly(handler: Handler, content: bytes) -> None:
    handler.serve(content)


def refused(status: int) -> Answer:
    return lambda handler, content: handler.refuse(status)


def cut_after(length: int) -> Answer:
    """Promise what was asked for, send `length` bytes of it, hang up."""

    def answer(handler: Handler, content: bytes) -> None:
        asked = re.match(r"bytes=(\d+)-(\d+)", handler.headers.get("Range") or "")
        start, last = (int(asked[1]), int(asked[2])) if asked else (0, len(content) - 1)
        handler.headers_for(206 if asked else 200, last + 1 - start, f"bytes {start}-{last}/{len(content)}")
        handler.wfile.write(content[start : start + length])
        handler.close_connection = True

    return answer


def short_by(length: int) -> Answer:
    """Send less than was asked for, and call it whole."""

    def answer(handler: Handler, content: bytes) -> None:
        asked = re.match(r"bytes=(\d+)-(\d+)", handler.headers.get("Range") or "")
        start, last = (int(asked[1]), int(asked[2])) if asked else (0, len(content) - 1)
        part = content[start : last + 1 - length]
        handler.headers_for(206, len(part), f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        handler.wfile.write(part)

    return answer


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
