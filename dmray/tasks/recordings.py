"""Where a recorded data set is kept. Apart from the recording itself, which loads torch and simulators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dmray.frozen import content_hash
from dmray.tasks.task import Task

if TYPE_CHECKING:
    from dmray.specs import Generation

RECORDING_VERSION = 1  # raised when a recorder or a policy in dmray/rollout/behaviours changes what is recorded


def recording_path(generation: Generation, task: Task, folder: Path) -> Path:
    """The path of the recording in `folder`, whether it exists or not."""
    digest = content_hash([RECORDING_VERSION, task.name, generation.model_dump(mode="json")])[:12]
    return folder / f"{task.name}-{generation.behaviour}-{digest}.hdf5"
