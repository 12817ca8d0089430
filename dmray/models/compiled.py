"""numba's compiled functions, kept on disk where that is possible.

numba keeps compiled code beside the source file, else in the home folder, else it fails. Here it is kept in
`dmray.files.cache_folder` before that fails, and not at all where nothing can be written: compiling takes seconds.

numba's own cache looks at the file of a function only, and its index can mix up what two processes write at the same
time. Here the code of another version of any module of this folder is not used, and neither is another processor's.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from llvmlite.binding import get_host_cpu_features, get_host_cpu_name
from numba import config, njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

from dmray.errors import StorageError
from dmray.file_lock import file_lock
from dmray.files import cache_folder

_LOCK_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with `options`, for a function of a module; its code is kept on disk where that is possible."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(**options)(function)
        if hasattr(dispatcher, "_cache") and (kept := _cache_of(function)) is not None:
            dispatcher._cache = kept
        return dispatcher

    return decorate


class _Cache(FunctionCache):  # type: ignore[misc]
    """numba's cache of one function; what cannot be loaded is compiled again, what cannot be saved is not."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = hashlib.sha256(repr((self._impl.locator.get_source_stamp(), _stamp())).encode()).hexdigest()
        self._cache_file = IndexDataCacheFile(self._cache_path, f"{self._impl.filename_base}-{stamp[:12]}", stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as cause:  # noqa: BLE001  a damaged file: pickle and LLVM decide which
            _log.warning("%s: compiled code cannot be read (%s: %s)", self._cache_path, type(cause).__name__, cause)
            self._save(self.flush)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        self._save(lambda: super(_Cache, self).save_overload(sig, data))

    def _save(self, save: Callable[[], None]) -> None:
        try:
            with file_lock(Path(self._cache_path) / ".dmray.lock", _LOCK_TIMEOUT_S, "another process saves code"):
                save()
        except (OSError, StorageError) as cause:
            _log.warning("compiled code is not kept: %s", cause)


def _cache_of(function: Callable[..., Any]) -> _Cache | None:
    try:
        return _Cache(function)
    except RuntimeError:  # "no locator available": neither the package nor the home folder can be written
        pass
    before = config.CACHE_DIR
    try:
        config.CACHE_DIR = str(cache_folder() / "numba")
        return _Cache(function)
    except (RuntimeError, StorageError):
        _say_once()
        return None
    finally:
        config.CACHE_DIR = before


@cache
def _say_once() -> None:
    _log.warning(
        "compiled code is not kept, so each process compiles it again: the folder of dmray, the home folder and the "
        "cache cannot be written; set DMRAY_CACHE to a folder that can be"
    )


@cache
def _stamp() -> str:
    """What compiled code depends on beside its own file: all modules that may be inlined, and the processor."""
    sources = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))]
    processor = get_host_cpu_name(), sorted(get_host_cpu_features().items())
    return hashlib.sha256(b"\0".join([*sources, repr(processor).encode()])).hexdigest()
