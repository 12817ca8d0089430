"""Standard output and error that never raise: closed, read by nobody, on a full disk, or unable to show a letter."""

from __future__ import annotations

import errno
import io
import os
import sys

_LOST = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _LastingFile(io.FileIO):
    """A file descriptor that leads to /dev/null from the moment at which it cannot be written any more."""

    def __init__(self, number: int, ends: bool) -> None:
        """`ends`: whether the command is of no use then, so that it ends with exit status 1."""
        super().__init__(number, "w", closefd=False)
        self._ends = ends

    def write(self, content: object, /) -> int:
        try:
            return super().write(content)  # type: ignore[arg-type]
        except OSError as problem:  # nobody reads the pipe, the terminal is gone, the disk is full
            if problem.errno not in _LOST:
                raise
        _to_devnull(self.fileno())
        if self._ends:
            raise SystemExit(1)
        return super().write(content)  # type: ignore[arg-type]


def guard_standard_streams(only_prints: bool) -> None:
    """Make standard output and error last. A command that `only_prints` ends when nobody reads it; others go on.

    A letter that the encoding does not have is written as `?`.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the caller closed it, and another file would get its number
            _to_devnull(number)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - it lives as long as the process
    sys.stdout = _lasting(sys.stdout, 1, only_prints)
    sys.stderr = _lasting(sys.stderr, 2, False)


def _lasting(stream: object, number: int, ends: bool) -> io.TextIOWrapper:
    encoding = "utf-8"
    if isinstance(stream, io.TextIOWrapper):
        stream.flush()
        encoding = stream.encoding
    buffer = io.BufferedWriter(_LastingFile(number, ends))
    return io.TextIOWrapper(buffer, encoding, errors="replace", line_buffering=True)


def _to_devnull(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
