"""Plain values (dict, list, str, int, float, bool, None) from what a Python caller may put into a sweep's mapping."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from dmray.errors import SpecError
from dmray.registry import short_repr
from dmray.specs.yaml_values import MAX_DEPTH, MAX_VALUES


def plain_value(value: Any) -> Any:
    """A deep copy of `value`: paths become text; NumPy numbers and arrays, tuples and ranges become plain ones.

    Values of other classes stay as they are, for the validation to refuse.

    Raises:
        SpecError: a key is not text, or `value` is nested too deep (perhaps inside itself) or too large.
    """
    return _Copy().of(value, 0)


class _Copy:
    def __init__(self) -> None:
        self._count = 0

    def of(self, value: Any, depth: int) -> Any:
        self._count += 1
        if depth > MAX_DEPTH:
            raise SpecError(f"sweep: nested more than {MAX_DEPTH} levels deep, or a value contains itself")
        if self._count > MAX_VALUES:
            raise SpecError(f"sweep: more than {MAX_VALUES:,} values")
        if isinstance(value, Mapping):
            return {self._key(key): self.of(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | range):
            return [self.of(item, depth + 1) for item in value]
        if isinstance(value, PathLike):
            return fspath(value)
        if not isinstance(value, type) and hasattr(value, "dtype") and hasattr(value, "tolist"):
            return self.of(value.tolist(), depth + 1)  # a NumPy number or array; NumPy itself need not be loaded
        return value

    def _key(self, key: Any) -> str:
        if not isinstance(key, str):
            raise SpecError(f"sweep: the key {short_repr(key)} is not text; the keys of a sweep are names of fields")
        return str(key)
