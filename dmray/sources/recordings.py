"""Data sets that are recorded on this machine, so that everything can be tried without a download."""

from __future__ import annotations

from pathlib import Path

from dmray.datasets import RecordedTransitions, write_d4rl_hdf5
from dmray.file_lock import file_lock
from dmray.files import as_storage_error, remove_ended_parts_of, remove_parts_of
from dmray.rollout import record
from dmray.space import require_disk, require_memory
from dmray.specs import Generation
from dmray.tasks import Task, recording_path

_LOCK_TIMEOUT_S = 3600.0
_COPIES_IN_MEMORY = 3  # the steps, the sorted arrays, the file
_CURE = "choose a folder on another disk"


def recorded_file(generation: Generation, task: Task, folder: Path) -> Path:
    """The file in `folder` that holds the recording; made first if it is not there, by one process.

    Raises:
        EngineError: the task has no simulator here, or no such behaviour.
        StorageError: `folder` cannot be written or has no room, or another process does not finish the recording.
    """
    path = recording_path(generation, task, folder)
    if path.exists():
        return path
    busy = "another process has been recording for an hour: wait for it, or end it and try again"
    with file_lock(folder / f".{path.name}.lock", _LOCK_TIMEOUT_S, busy):
        if not path.exists():
            remove_parts_of(path)
            require_room_to_record(path, task, generation.transitions)
            write_recording(path, record(task, generation), task, generation.model_dump_json())
    return path


def require_room_to_record(path: Path, task: Task, transitions: int) -> None:
    """Check, before hours of recording, that memory and disk have room for so many transitions of `task`.

    Raises:
        StorageError: they have not; the message says how much is needed.
    """
    row_bytes = 4 * (task.observation_dim + task.action_dim + 1) + 2
    what = f"a recording of {transitions:,} transitions of {task.name}"
    require_memory(_COPIES_IN_MEMORY * row_bytes * transitions, what, "record fewer transitions")
    require_disk(path.parent, row_bytes * transitions, what, _CURE)


def write_recording(path: Path, recorded: RecordedTransitions, task: Task, recorded_by: str) -> None:
    """Write a file in D4RL's layout whose attributes say that it is not D4RL's data.

    Raises:
        StorageError: it cannot be written.
    """
    attributes = {"task": task.name, "recorded_by": recorded_by, "note": "recorded by dmray; not D4RL's data"}
    with as_storage_error(path, _CURE):
        remove_ended_parts_of(path)
        write_d4rl_hdf5(path, recorded.as_arrays(), attributes)
