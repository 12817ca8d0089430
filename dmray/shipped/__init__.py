"""The sweep files and examples that come with dmray, to be used by name or copied into a folder.

The folders `sweeps` and `examples` beside this file are links to those at the top of the repository. A wheel has the
files themselves.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from dmray.errors import SpecError, StorageError
from dmray.files import as_storage_error, is_regular_file, read_small, write_atomic
from dmray.registry import nearest, short

FOLDER = Path(__file__).parent
_PARTS = ("sweeps", "examples")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SUFFIXES = (".ipynb", ".py", ".yaml")
_MOST_NAMED = 5


def shipped_sweeps() -> dict[str, Path]:
    """The sweep files of dmray by name, for example `quickstart`."""
    return {path.stem: path for path in sorted((FOLDER / "sweeps").glob("*.yaml"))}


def shipped_sweep(given: str | Path, folder: Path) -> Path | None:
    """The file of dmray that `given` names; None if it is a path: it has a `/` or a suffix, or is a file in `folder`.

    Raises:
        SpecError: `given` is a name, but neither a file in `folder` nor a sweep file of dmray.
    """
    name = str(given)
    if not _NAME.fullmatch(name) or _is_file(folder / name):
        return None
    known = shipped_sweeps()
    if name not in known:
        best = nearest(name, known)
        hint = f", did you mean '{best}'?" if best else ";"
        raise SpecError(f"{short(name)}: no such sweep file{hint} dmray brings {', '.join(known)}")
    return known[name]


def copy_shipped(folder: Path, *, overwrite: bool = False) -> tuple[list[Path], list[Path]]:
    """Copy the sweep files and examples into `folder`. Returns the files that were written, and those already there.

    Raises:
        StorageError: a file there has another content and `overwrite` is false (then nothing is written), or `folder`
            cannot be written.
    """
    contents = {
        folder / part / path.name: path.read_bytes()
        for part in _PARTS
        for path in sorted((FOLDER / part).iterdir())
        if path.suffix in _SUFFIXES
    }
    found = {path: _content(path) for path in contents}
    changed = [path for path, content in found.items() if content not in (None, contents[path])]
    if changed and not overwrite:
        more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
        raise StorageError(
            f"{', '.join(map(str, changed[:_MOST_NAMED]))}{more}: there is another file of this name; nothing was "
            "written: give another folder, or --force to replace it"
        )
    to_write = [path for path, content in found.items() if content != contents[path]]
    for path in to_write:
        with as_storage_error(path, "give another folder"):
            write_atomic(path, contents[path])
    return to_write, [path for path in contents if path not in to_write]


def _content(path: Path) -> bytes | None:
    """The content of the file at `path`; None if there is none, and b"" if something else is there."""
    try:
        return read_small(path)
    except FileNotFoundError:
        return None
    except OSError as cause:
        if os.path.isfile(path):
            return b""
        raise StorageError(f"{path}: cannot be written ({cause.strerror or cause}); give another folder") from cause


def _is_file(path: Path) -> bool:
    try:
        return is_regular_file(path)
    except StorageError:  # a name that no file can have
        return False
