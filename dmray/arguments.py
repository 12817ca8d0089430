"""Check the arguments of the Python API. A wrong value and a wrong type are both a `SpecError` that names the argument.

NumPy numbers are accepted where numbers are, and any path where text is. True and false are not numbers, and text is
not read as a number.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, cast

from dmray.errors import SpecError, StorageError
from dmray.registry import short_repr

MAX_COUNT = 10**9
MAX_SEED = 2**31 - 1
MAX_EPISODES = 10**6
MAX_WINDOWS = 10**4
MAX_COHORT = 10**5
MAX_WORKERS = 10**4
MAX_NOISE = 1000.0  # deviations of the data
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # `Path` leaves one slash of two


def whole_number(name: str, value: Any, least: int, most: int = MAX_COUNT) -> int:
    """`value` as an int from `least` to `most`. A float must be exactly whole.

    Raises:
        SpecError: it is not.
    """
    number: int | None = None
    if hasattr(value, "is_integer") and not hasattr(value, "__index__"):  # a float, or NumPy's
        number = int(value) if value.is_integer() else None
    elif not _is_flag(value) and hasattr(value, "__index__"):
        try:
            number = operator.index(value)
        except TypeError:  # an array with several items
            number = None
    if number is None:
        raise SpecError(f"{name} {short_repr(value)}: must be a whole number")
    if number < least:
        raise SpecError(f"{name} {short_repr(number)}: must be at least {least}")
    if number > most:
        raise SpecError(f"{name} {short_repr(number)}: must be at most {most:,}")
    return number


def finite_number(name: str, value: Any) -> float:
    """`value` as a finite float.

    Raises:
        SpecError: it is not a number, or not finite.
    """
    try:
        if isinstance(value, str | bytes | bytearray) or _is_flag(value):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise SpecError(f"{name} {short_repr(value)}: must be a number") from None
    if not math.isfinite(number):
        raise SpecError(f"{name} {number}: must be a finite number")
    return number


def flag(name: str, value: Any) -> bool:
    """`value` as a bool.

    Raises:
        SpecError: it is neither true nor false. (0 and "no" are not.)
    """
    if not _is_flag(value):
        raise SpecError(f"{name} {short_repr(value)}: must be True or False")
    return bool(value)


def line(name: str, value: Any) -> str:
    """`value`, a text that is not empty and has no line breaks or other characters that cannot be printed.

    Raises:
        SpecError: it is not.
    """
    if not isinstance(value, str):
        raise SpecError(f"{name} {short_repr(value)}: must be text, not a {type(value).__name__}")
    if not value or not value.isprintable():
        raise SpecError(f"{name} {short_repr(value)}: must be text on one line that is not empty")
    return value


def place(name: str, value: Any) -> str:
    """`value`, the path of a file or a folder, or an address, as text.

    Raises:
        SpecError: it is neither text nor a path.
    """
    if not isinstance(value, str | PathLike):
        raise SpecError(f"{name} {short_repr(value)}: give a path, not a {type(value).__name__}")
    return line(name, fspath(value))


def local_path(name: str, value: Any) -> Path:
    """`value`, a path on this machine.

    Raises:
        SpecError: it is no path, or an address: as a path it would be a folder called `s3:`.
    """
    text = place(name, value)
    if _ADDRESS.match(text):
        raise SpecError(f"{name} {text}: is an address; give a folder on this machine and upload it from there")
    return Path(text)


def folder_path(name: str, value: Any) -> Path:
    """`value`, the path of a folder on this machine that exists or can be made.

    Raises:
        SpecError: it is no path, or an address.
        StorageError: it is a file.
    """
    path = local_path(name, value)
    try:
        is_file = path.exists() and not path.is_dir()
    except OSError as cause:
        raise StorageError(f"{name} {path}: not a folder that can be used: {cause.strerror}") from cause
    if is_file:
        raise StorageError(f"{name} {path}: is a file; give a folder")
    return path


def writable_folder(name: str, value: Any) -> Path:
    """`value`, a folder that exists now and in which files can be written: to find out before hours of computing.

    Raises:
        SpecError: it is no path.
        StorageError: it is a file, or nothing can be written there.
    """
    path = folder_path(name, value)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass
    except OSError as cause:
        raise StorageError(f"{name} {path}: cannot be written: {cause.strerror}; give another folder") from cause
    return path


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """`value`, a mapping with text as its keys.

    Raises:
        SpecError: it is not.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise SpecError(f"{name} {short_repr(value)}: must be a mapping with text as its keys")
    return cast(Mapping[str, Any], value)


def _is_flag(value: Any) -> bool:
    kind: Any = getattr(value, "dtype", None)
    return isinstance(value, bool) or (getattr(kind, "kind", None) == "b" and getattr(value, "shape", None) == ())
