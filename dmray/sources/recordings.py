"""Data sets that are recorded on this machine, so that everything can be tried without a download."""

from __future__ import annotations

import fcntl
from pathlib import Path

from dmray.datasets import RecordedTransitions, write_d4rl_hdf5
from dmray.rollout import record
from dmray.specs import Generation, content_hash
from dmray.tasks import Task

RECORDING_VERSION = 1  # raised when a recorder changes what it records


def recording_path(generation: Generation, task: Task, folder: Path) -> Path:
    """The path of the recording in `folder`, whether it exists or not."""
    digest = content_hash([RECORDING_VERSION, task.name, generation.model_dump(mode="json")])[:12]
    return folder / f"{task.name}-{generation.behaviour}-{digest}.hdf5"


def recorded_file(generation: Generation, task: Task, folder: Path) -> Path:
    """The file in `folder` that holds the recording; recorded first if it is missing, by one process at a time."""
    path = recording_path(generation, task, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            write_recording(path, record(task, generation), task, generation.model_dump_json())
    return path


def write_recording(path: Path, recorded: RecordedTransitions, task: Task, recorded_by: str) -> None:
    """Write a file in D4RL's layout whose attributes say that it is not D4RL's data."""
    attributes = {"task": task.name, "recorded_by": recorded_by, "note": "recorded by dmray; not D4RL's data"}
    write_d4rl_hdf5(path, recorded.as_arrays(), attributes)
