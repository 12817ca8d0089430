"""Arrays of an HDF5 file that somebody else made: each is checked before a value of it is read.

A file can do more than hold its arrays. It can name bytes of other files as its own (external storage, links, virtual
arrays), declare more rows than it has, and be damaged in any place. Only arrays that lie in the file itself, under
their own name, whole, and of a size that the file can hold, pass.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dmray.errors import DatasetError, DmrayError
from dmray.escaping import printable

# gzip packs zeros 1,032 times. What is smaller than `_HARMLESS` bytes when it is read need not be doubted.
_MOST_PACKED, _HARMLESS = 2000, 64 * 2**20
_MOST_NAMES = 1000


@dataclass(frozen=True)
class Hdf5Array:
    """An array that lies in its file: every check but those of its values and sizes is done."""

    where: str  # file and name, to begin a message with
    cure: str  # how to get the file anew
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored_bytes: int
    _dataset: Any

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def read_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def check_whole(self) -> None:
        """Check that all rows were written.

        Raises:
            DatasetError: some were not, so that reading would make them up.
        """
        with self._reading():
            chunk = self._dataset.chunks
            pieces = (
                1
                if chunk is None
                else math.prod(-(-size // step) for size, step in zip(self.shape, chunk, strict=True))
            )
            written = self._dataset.id.get_num_chunks() if chunk is not None else int(self.stored_bytes > 0)
        if written < pieces:
            part = "no row was" if written == 0 else f"only {written:,} of its {pieces:,} chunks were"
            raise DatasetError(
                f"{self.where} declares {len(self):,} rows ({_size(self.read_bytes)}), but {part} ever written; "
                f"write the file again, or {self.cure}"
            )

    def read(self, rows: slice = slice(None), columns: slice | None = None) -> np.ndarray:
        """The values of `rows`, as they are stored."""
        with self._reading():
            values: np.ndarray = self._dataset[rows] if columns is None else self._dataset[rows, columns]
        return values

    def read_column(self) -> np.ndarray:
        """The only column, (N,), of an array (N,) or (N, 1), as it is stored."""
        return self.read().reshape(-1)

    def read_into(self, array: np.ndarray) -> np.ndarray:
        """Fill `array` (N, C) or (N,) with the leading columns, converted on the way."""
        with self._reading():
            if len(self.shape) > array.ndim:  # (N, 1) for (N,)
                array[:] = self._dataset[:, 0]
            else:
                self._dataset.read_direct(array, tuple(slice(0, size) for size in array.shape))
        return array

    def _reading(self) -> AbstractContextManager[None]:
        return _reading(self.where, self.cure)


class Hdf5Source:
    """An open file; `cure` ends the messages on damage."""

    def __init__(self, path: Path, file: h5py.File, cure: str) -> None:
        self.path, self.cure = path, cure
        self._file = file
        self._file_bytes = path.stat().st_size

    def count(self) -> int:
        """How many names there are on top."""
        with _reading(str(self.path), self.cure):
            return len(self._file)

    def names(self, group: str = "/") -> list[str]:
        """Printable names in `group`, the first 1,000; none if there is no such group in the file itself."""
        with _reading(f"{self.path}: {group}", self.cure):
            if group != "/" and not isinstance(self._file.get(group, getlink=True), h5py.HardLink):
                return []
            found = self._file[group]
            names = zip(range(_MOST_NAMES), found, strict=False) if isinstance(found, h5py.Group) else ()
            return [str(name) for _, name in names if str(name).isprintable()]

    def attribute(self, name: str) -> str | None:
        """The text of an attribute of the file; None if there is none, or if it is not text."""
        with _reading(f"{self.path}: the attribute {name}", self.cure):
            value = self._file.attrs.get(name)
        return value if isinstance(value, str) else None

    def find(self, name: str) -> Hdf5Array | None:
        """The array of that name ("infos/goal" is one in a group), or None if there is none.

        Raises:
            DatasetError: the name leads elsewhere, to no array, or to one that cannot be in the file as it is declared.
        """
        where = f"{self.path}: {name}"
        group: Any = self._file
        with _reading(where, self.cure):
            for part in name.split("/"):
                if not isinstance(group, h5py.Group):
                    return None
                link = group.get(part, getlink=True)
                if link is None:
                    return None
                _check_link(where, link)
                group = group[part]
            return self._checked(where, group)

    def _checked(self, where: str, found: Any) -> Hdf5Array:
        if not isinstance(found, h5py.Dataset):
            kind = "a group" if isinstance(found, h5py.Group) else "a type"
            raise DatasetError(f"{where} is {kind}, not an array; write the array under this name")
        made = found.id.get_create_plist()  # looked at first: asking for more may open other files
        _check_own(where, made)
        if found.shape is None:
            raise DatasetError(f"{where} is empty; write the array under this name")
        array = Hdf5Array(where, self.cure, found.shape, found.dtype, found.id.get_storage_size(), found)
        if array.stored_bytes > self._file_bytes:
            raise DatasetError(
                f"{where} claims {_size(array.stored_bytes)} of a file that has {_size(self._file_bytes)}: it is "
                f"truncated or damaged; {self.cure}"
            )
        chunk_bytes = 0 if found.chunks is None else math.prod(found.chunks) * array.dtype.itemsize
        needed = max(array.read_bytes, chunk_bytes)  # HDF5 holds one chunk in memory as well
        if needed > max(_HARMLESS, _MOST_PACKED * array.stored_bytes):
            raise DatasetError(
                f"{where} declares {'x'.join(map(str, array.shape))} values ({_size(needed)} of memory), but has "
                f"{_size(array.stored_bytes)} in the file, too few for so many; write the file again, or {self.cure}"
            )
        return array


@contextmanager
def open_hdf5(path: Path, cure: str = "fetch it again") -> Iterator[Hdf5Source]:
    """Open a file to read; `cure` says how to replace a damaged one.

    Raises:
        DatasetError: it is missing, no regular file, no HDF5, truncated, or held by a writer.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as cause:
        raise DatasetError(f"{path}: no such file") from cause
    except (OSError, ValueError) as cause:  # ValueError: a zero byte in the name
        raise DatasetError(f"{path}: cannot be read: {getattr(cause, 'strerror', None) or cause}") from cause
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise DatasetError(f"{path}: is {kind}; give an HDF5 file")
    try:
        file = h5py.File(path, "r")
    except (DmrayError, MemoryError):
        raise
    except Exception as cause:
        raise DatasetError(f"{path}: {_why_not_opened(path, cause, cure)}") from cause
    try:
        yield Hdf5Source(path, file, cure)
    finally:
        with _reading(str(path), cure):
            file.close()


def _why_not_opened(path: Path, cause: Exception, cure: str) -> str:
    text = _first_line(cause)
    if "unable to lock" in text:
        if getattr(cause, "errno", None) in (errno.EAGAIN, errno.EACCES):
            return "another process is writing it; wait until it has closed the file, then start again"
        return f"its file system cannot lock it ({text}); set HDF5_USE_FILE_LOCKING=FALSE"
    if "already open for" in text:
        return (
            "it is being written, or its writer was killed before it closed the file; wait for the writer, or mark the "
            f"file as closed with `h5clear -s {path.name}`"
        )
    if isinstance(cause, PermissionError) or not os.access(path, os.R_OK):
        return "no permission to read it; change it with chmod"
    return f"not a readable HDF5 file, perhaps truncated ({text}); {cure}"


def _check_link(where: str, link: Any) -> None:
    """Check that a name leads to what is in the file. A soft link is refused too: it may lead on to an external one."""
    if isinstance(link, h5py.ExternalLink):
        raise DatasetError(
            f"{where} is a link to another file ('{printable(link.filename)}'); copy the array into this file"
        )
    if isinstance(link, h5py.SoftLink):
        raise DatasetError(f"{where} is a link to '{printable(link.path)}'; write the array itself under this name")


def _check_own(where: str, made: Any) -> None:
    """Check how the array was made: of bytes in the file, with filters that can be undone here."""
    if made.get_external_count():
        name = printable(os.fsdecode(made.get_external(0)[0]))
        raise DatasetError(f"{where} lies in another file ('{name}', external storage); copy the array into this file")
    if made.get_layout() == h5py.h5d.VIRTUAL:
        raise DatasetError(f"{where} is put together from other arrays (a virtual dataset); copy it into one array")
    for index in range(made.get_nfilters()):
        code, _, _, name = made.get_filter(index)
        if not h5py.h5z.filter_avail(code):
            filter_name = printable(os.fsdecode(name)) or code
            raise DatasetError(
                f"{where} is compressed with '{filter_name}', which h5py lacks here; write the file with gzip "
                "(`h5repack -f GZIP=4`)"
            )


@contextmanager
def _reading(where: str, cure: str) -> Iterator[None]:
    """Report whatever h5py raises for a damaged file, which is not listed anywhere, as a `DatasetError`."""
    try:
        yield
    except (DmrayError, MemoryError):
        raise
    except Exception as cause:
        raise DatasetError(
            f"{where} cannot be read ({type(cause).__name__}: {_first_line(cause)}): the file is damaged or truncated; "
            f"{cure}"
        ) from cause


def _first_line(cause: Exception) -> str:
    lines = str(cause).splitlines()
    return printable(lines[0]) if lines else type(cause).__name__


def _size(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
