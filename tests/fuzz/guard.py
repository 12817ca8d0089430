"""Watches one process while it reads odd inputs: files outside its folder, programs it starts, memory, open files."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATH_EVENTS = {
    **dict.fromkeys(
        ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.utime", "shutil.rmtree"), (0,)
    ),
    **dict.fromkeys(("os.rename", "shutil.move"), (0, 1)),
    **dict.fromkeys(("os.symlink", "os.link", "shutil.copyfile"), (1,)),
}
_PROGRAMS = ("git", "nvidia-smi", "lscpu", "uname", "ldconfig", "gcc", "/sbin/ldconfig")  # asked for provenance
_OF_LIBRARIES = ("/tmp/envpool-jumanji-matplotlib",)  # envpool makes it when it is imported
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CODE_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "pickle.find_class")


class Guard:
    """Notes in `found` what the process does that reading an input must not do. It cannot be taken off again."""

    def __init__(self, allowed: Sequence[Path]) -> None:
        self.found: list[str] = []
        self._allowed = [os.path.realpath(folder) for folder in allowed]
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and any(letter in mode for letter in "wax+")) or (
                isinstance(flags, int) and bool(flags & _WRITE_FLAGS)
            )
            if writes:
                self._check(event, path)
        elif places := _PATH_EVENTS.get(event):
            for place in places:
                self._check(event, arguments[place])
        elif event == "subprocess.Popen":
            if os.path.basename(os.fsdecode(arguments[0] or arguments[1][0])) not in _PROGRAMS:
                self.found.append(f"{event} {arguments[:2]!r}")
        elif event in _CODE_EVENTS:
            self.found.append(f"{event} {arguments!r}"[:200])
        elif event == "socket.connect" and isinstance(address := arguments[1], tuple) and address[0] not in _LOOPBACK:
            self.found.append(f"{event} {address!r}")

    def _check(self, event: str, path: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        try:
            real = os.path.realpath(os.fsdecode(path))
        except ValueError:  # a null byte: the system refuses it
            return
        if not any(
            real == folder or real.startswith(folder + os.sep)
            for folder in (*self._allowed, *_OF_LIBRARIES, "/dev", "/proc")
        ):
            self.found.append(f"{event} {real}"[:300])


def limit_memory(bytes_more: int) -> None:
    """Let the address space grow by `bytes_more` at most, so that a bomb does not end the machine."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + bytes_more, now + bytes_more))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
