"""The user's mistakes and the world's failures, as errors whose message carries the cure.

Every class takes one string, so every instance pickles and crosses a process unchanged.
"""

from __future__ import annotations


class DmrayError(Exception):
    """Base of all errors that a user can act on; the command lines print it without a traceback."""


class SpecError(DmrayError):
    """A sweep file (or an override) says something impossible: file, place, value, nearest right one."""


class DatasetError(DmrayError):
    """A data set is missing, truncated, of the wrong layout, or holds values that are not finite."""


class EngineError(DmrayError):
    """A task has no simulator here, or the simulator disagrees with the task's declared sizes."""


class CheckpointError(DmrayError):
    """A checkpoint is unreadable or belongs to another spec or another data set."""


class StorageError(DmrayError):
    """The storage path cannot be written, is full, or holds another sweep of the same name."""


class StoreUnavailableError(StorageError, ConnectionError):
    """An object store does not answer; another attempt, or another machine, may do better."""


class TrackingError(DmrayError):
    """The MLflow server does not answer or refuses what it was given."""


class ClusterError(DmrayError):
    """The resources a sweep asks for do not fit the machines that are there."""


class CaptureError(DmrayError):
    """A GPU's work cannot be recorded for replay."""


class TeamError(DmrayError, OSError):
    """Another process of the same trial is gone: the trial goes on from its checkpoint with new ones."""


class TeamDismissedError(TeamError):
    """The process that leads the trial has ended its part, well or not; the others end too."""


class MissingPackageError(DmrayError):
    """What was asked for needs a package that is not installed, or is broken here."""


class PluginError(DmrayError):
    """What another package registers contradicts itself, or has a name that is taken."""
