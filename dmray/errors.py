"""The errors of dmray. Each message says what is wrong and how to fix it.

Every class takes one string, so every instance can be pickled and sent to another process.
"""

from __future__ import annotations

from dmray.escaping import printable

_LONGEST, _HEAD, _TAIL = 8_000, 6_000, 1_900


class DmrayError(Exception):
    """Base class of all errors that a user can act on. The command lines print the message without a traceback.

    Messages quote file names and values of files, which may hold anything: what does not show is escaped, line breaks
    stay, and the middle of an endless message is left out.
    """

    def __init__(self, message: str) -> None:
        text = "\n".join(map(printable, message.split("\n")))
        if len(text) > _LONGEST:
            left_out = len(text) - _HEAD - _TAIL
            text = f"{text[:_HEAD]} ... ({left_out:,} characters) ... {text[-_TAIL:]}"
        super().__init__(text)


class SpecError(DmrayError):
    """A sweep file or an override is invalid. The message names the file, the field, the value and a valid one."""


class DatasetError(DmrayError):
    """A data set is missing or truncated, has the wrong layout, or holds values that are not finite."""


class DatasetUnavailableError(DatasetError, ConnectionError):
    """No address of a data set answers, or all break off: a transient error that is retried."""


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


class BusyMachineError(DmrayError):
    """The speed of this machine cannot be measured, because other processes use it."""


class CaptureError(DmrayError):
    """A training step cannot be captured as a CUDA graph."""


class PackServerError(DmrayError, ConnectionError):
    """The process that trains packed trials ended or does not answer: a transient error that is retried."""


class MissingPackageError(DmrayError):
    """A required package is not installed, or cannot be imported."""


class PluginError(DmrayError):
    """A package that extends dmray cannot be used. The message names the package, the entry point and the reason."""
