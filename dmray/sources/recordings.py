"""Data sets that are recorded here, so that everything can be tried without a download."""

from __future__ import annotations

import fcntl
from pathlib import Path

from dmray.datasets import write_d4rl_hdf5
from dmray.rollout import RecordedTransitions, record_maze, record_random
from dmray.specs import Generation, content_hash
from dmray.tasks import Task

RECORDING_VERSION = 1  # raised when a recorder changes what it records


def record(generation: Generation, task: Task) -> RecordedTransitions:
    """What `generation` describes, in `task`; the same for the same seed, bit for bit.

    Raises:
        EngineError: the task has no simulator here, or no such behaviour.
    """
    if generation.behaviour == "random":
        return record_random(task, generation.transitions, generation.seed)
    return record_maze(task, generation)


def recording_path(generation: Generation, task: Task, folder: Path) -> Path:
    """Where in `folder` the recording is, or will be."""
    digest = content_hash([RECORDING_VERSION, task.name, generation.model_dump(mode="json")])[:12]
    return folder / f"{task.name}-{generation.behaviour}-{digest}.hdf5"


def recorded_file(generation: Generation, task: Task, folder: Path) -> Path:
    """The file in `folder` that holds the recording, made first if it is not there; once, whoever asks together."""
    path = recording_path(generation, task, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            write_recording(path, record(generation, task), task, generation.model_dump_json())
    return path


def write_recording(path: Path, recorded: RecordedTransitions, task: Task, recorded_by: str) -> None:
    """A D4RL file that says what it is: not D4RL's data."""
    attributes = {"task": task.name, "recorded_by": recorded_by, "note": "recorded by dmray; not D4RL's data"}
    write_d4rl_hdf5(path, recorded.as_arrays(), attributes)
