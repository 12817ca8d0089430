"""The folder of a Ray that dmray starts for one sweep: sockets, logs, spilled objects, and the token that guards it.

Ray would put all of this into /tmp/ray for good, and the token into the home folder, readable by everybody. Here each
sweep has a folder of its own, readable by its user only. Its driver holds a lock on it, removes it at the end, and the
next sweep removes the folders whose lock nobody holds: their drivers were killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from dmray.errors import ClusterError, StorageError
from dmray.file_lock import file_lock
from dmray.interruption import released_if_ended

_SOCKET = "/12345678/session_2026-11-26_16-46-14_426570_4194304/sockets/plasma_store.99"  # Ray's longest, in the folder
_MOST_BYTES = 103 - len(_SOCKET)  # the path of a Unix socket has at most 103 bytes on macOS, 107 on Linux
_LOCK, _BEGUN = "lock", "new-"
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def session_folder(environment: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Make a folder for a session, and remove it at the end of the block. It is what Ray calls its temporary folder.

    It is in $RAY_TMPDIR, $TMPDIR, /tmp, $XDG_RUNTIME_DIR, /var/tmp or /dev/shm: the first that can be written and
    whose name is short enough for Unix sockets.

    Raises:
        ClusterError: none of them is.
    """
    parent = _parent(environment)
    for dead in remove_dead_sessions(parent):
        _log.info("removed %s, which the Ray of a killed sweep had left", dead)
    begun = Path(tempfile.mkdtemp(prefix=_BEGUN, dir=parent))
    path = parent / begun.name.removeprefix(_BEGUN)
    try:
        with (
            file_lock(begun / _LOCK, 0.0, "another process uses this folder"),
            released_if_ended(lambda: shutil.rmtree(path, ignore_errors=True)),
        ):
            begun.rename(path)  # only now, so that no other sweep finds it without its lock
            yield path
            shutil.rmtree(path, ignore_errors=True)
    finally:
        for left in (begun, path):
            shutil.rmtree(left, ignore_errors=True)


def new_token(folder: Path) -> Path:
    """A file in `folder` with a new token, which only this user can read."""
    path = folder / "auth_token"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def remove_dead_sessions(parent: Path) -> list[Path]:
    """Remove the folders in `parent` of sessions whose driver is dead. Returns them."""
    removed = []
    for path in sorted(parent.iterdir()):
        if path.name.startswith(_BEGUN) or not (path / _LOCK).exists():
            continue
        with (
            contextlib.suppress(StorageError),  # its driver is alive
            file_lock(path / _LOCK, 0.0, "its driver is alive"),
        ):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def session_processes() -> list[psutil.Process]:
    """The processes of the Ray that this process has started or is starting, and their children."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(f"/{_parent_name()}/" in argument for argument in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def _parent_name() -> str:
    return f"dmray-{os.getuid()}"


def _parent(environment: Mapping[str, str]) -> Path:
    """The folder of this user's sessions."""
    places = {
        f"${name} ({environment[name]})": environment[name]
        for name in ("RAY_TMPDIR", "TMPDIR")
        if environment.get(name)
    }
    asked = len(places)
    places |= {"/tmp": "/tmp"}  # noqa: S108 - `_unusable` looks whose the folder is
    places |= {place: place for place in (environment.get("XDG_RUNTIME_DIR"), "/var/tmp", "/dev/shm") if place}  # noqa: S108
    reasons: list[str] = []
    for name, place in places.items():
        parent = Path(place).absolute() / _parent_name()
        reason = _unusable(parent)
        if reason is None:
            if reasons[:asked]:
                _log.warning("%s; Ray's sockets and logs are in %s", "; ".join(reasons[:asked]), parent)
            return parent
        reasons.append(f"{name} {reason}")
    raise ClusterError(
        f"no folder for the sockets of Ray: {'; '.join(reasons)}; set RAY_TMPDIR to a folder that can be written and "
        f"whose path has at most {_MOST_BYTES - len(f'/{_parent_name()}')} bytes, or use --local"
    )


def _unusable(parent: Path) -> str | None:
    """Why the folder `parent`, which is made if it is missing, cannot hold sessions; None if it can."""
    if len(os.fsencode(parent)) > _MOST_BYTES:
        return "is too long for Unix sockets"
    try:
        with contextlib.suppress(FileExistsError):
            parent.mkdir(mode=0o700)
        found = parent.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            return f"holds a {parent.name} that others can write"
        with tempfile.TemporaryFile(dir=parent) as probe:
            probe.write(bytes(4096))
    except OSError as problem:
        return f"cannot be written ({problem.strerror})"
    return None
