"""Messages between a trial and the process that trains packed trials: a Unix socket in a folder of this user's.

A message is a dictionary of plain values and tensors, as `torch.save` writes it and `torch.load(weights_only=True)`
reads it, after its length. Each wait has a deadline.
"""

from __future__ import annotations

import io
import os
import select
import socket
import stat
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dmray.errors import StorageError

Message = dict[str, Any]
_LENGTH = struct.Struct("<Q")
_LONGEST_PATH = 103  # of a Unix socket, in bytes: 103 on macOS, 107 on Linux
_MOST_BYTES = 2**36


class Channel:
    """One end of a connection. A message that cannot be sent or received in time leaves it unusable."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def send(self, message: Message, timeout_s: float) -> None:
        """Raises OSError: the other end is gone, or has not read it in time (TimeoutError)."""
        stream = io.BytesIO()
        stream.write(bytes(_LENGTH.size))
        torch.save(message, stream)
        with stream.getbuffer() as whole:
            whole[: _LENGTH.size] = _LENGTH.pack(len(whole) - _LENGTH.size)
            self._socket.settimeout(timeout_s)
            self._socket.sendall(whole)

    def receive(self, timeout_s: float | None) -> Message:
        """The next message; None waits for ever. Raises OSError: none comes in time, or the other end is gone."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size, deadline))
        if length > _MOST_BYTES:
            raise ConnectionError(f"a message of {length:,} bytes")
        received: Message = torch.load(io.BytesIO(self._exactly(length, deadline)), weights_only=True)
        return received

    def has_answer(self, timeout_s: float) -> bool:
        """Whether a message, or the end of the connection, comes within this time."""
        return bool(select.select([self._socket], [], [], timeout_s)[0])

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, count: int, deadline: float | None) -> bytearray:
        content = bytearray(count)
        view, have = memoryview(content), 0
        while have < count:
            self._socket.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-3))
            got = self._socket.recv_into(view[have:])
            if not got:
                raise ConnectionError("the other process closed the connection")
            have += got
        return content


def listen(path: Path) -> socket.socket:
    """A socket at `path` that accepts connections."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    path.chmod(0o600)
    listening.listen(128)
    return listening


def connect(path: Path, timeout_s: float) -> Channel:
    """Raises OSError: nobody listens there."""
    connecting = socket.socket(socket.AF_UNIX)
    connecting.settimeout(timeout_s)
    try:
        connecting.connect(str(path))
    except BaseException:
        connecting.close()
        raise
    return Channel(connecting)


def session_folder(name: str) -> Path:
    """A folder of this machine that only this user can read, for the socket and the log of one server.

    It is in $TMPDIR, or in /tmp if the path would be too long for a socket.

    Raises:
        StorageError: it cannot be made, or others can write to it.
    """
    places = [Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108 - its owner is checked
    parents = [place / f"dmray-packs-{os.getuid()}" for place in places]
    fitting = [parent for parent in parents if len(os.fsencode(parent / name / "socket")) <= _LONGEST_PATH]
    parent = (fitting or parents)[0]
    try:
        parent.mkdir(mode=0o700, exist_ok=True)
        found = parent.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise StorageError(f"{parent}: belongs to others or can be read by them; remove it, or set TMPDIR")
        (parent / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as cause:
        raise StorageError(
            f"{parent}: no folder for the sockets of packed trials ({cause.strerror or cause}); set TMPDIR to a folder "
            "that can be written"
        ) from cause
    return parent / name
