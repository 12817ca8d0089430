"""The errors of dmray. Each message says what is wrong and how to fix it.

Every class takes one string, so every instance can be pickled and sent to another process.
"""

from __future__ import annotations

_LONGEST, _HEAD, _TAIL = 8_000, 6_000, 1_900


def printable(text: str) -> str:
    """`text` as a terminal may show it: control characters and invisible ones are escaped, and it has an end.

    Messages quote file names and values of files, which may hold anything. Line breaks stay.
    """
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_HEAD]} ... ({len(text) - _HEAD - _TAIL:,} characters) ... {text[-_TAIL:]}"


class DmrayError(Exception):
    """Base class of all errors that a user can act on. The command lines print the message without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class SpecError(DmrayError):
    """A sweep file or an override is invalid. The message names the file, the field, the value and a valid one."""


class DatasetError(DmrayError):
    """A data set is missing or truncated, has the wrong layout, or holds values that are not finite."""


class EngineError(DmrayError):
    """A task's simulator is not installed, or its observation or action size is not the declared one."""


class CheckpointError(DmrayError):
    """A checkpoint cannot be read, or it was made by another trial or from another data set."""


class StorageError(DmrayError):
    """The storage cannot be written, is full, is locked, or holds another sweep of the same name."""


class StoreUnavailableError(StorageError, ConnectionError):
    """An object store does not answer: a transient error that is retried."""


class TrackingError(DmrayError):
    """The MLflow server does not answer or refuses a request."""


class TrackingUnavailableError(TrackingError):
    """Nothing answers at the address of the MLflow server; it may later."""


class ClusterError(DmrayError):
    """A sweep asks for more resources than the machines have."""


class ClusterLostError(ClusterError):
    """Ray ended, or does not answer any more, while a sweep ran on it. The sweep can be continued."""


class CaptureError(DmrayError):
    """A training step cannot be captured as a CUDA graph."""


class MissingPackageError(DmrayError):
    """A required package is not installed, or cannot be imported."""


class PluginError(DmrayError):
    """A package that extends dmray cannot be used. The message names the package, the entry point and the reason."""
