"""Where a trial's transitions come from: a file by path, a file of the catalog, or recorded on the spot and kept."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import numpy as np

from dmray.data import Episodes, FileRules, read_d4rl_hdf5, write_d4rl_hdf5
from dmray.errors import DatasetError
from dmray.rollout import RecordedTransitions, record_maze
from dmray.specs import DatasetSpec, MazeGeneration, content_hash
from dmray.tasks import DATASETS, Task

RECORDING_VERSION = 1  # raised when the recorder changes what it records


def open_dataset(dataset: DatasetSpec, task: Task, datasets_folder: Path) -> Episodes:
    """The episodes of `dataset`.

    Raises:
        DatasetError: the file is missing, broken, or of another task; the message says where to put which file.
    """
    return read_d4rl_hdf5(locate(dataset, task, datasets_folder), file_rules(task))


def file_rules(task: Task) -> FileRules:
    """How files of `task` are to be read."""
    return FileRules(
        observation_dim=task.observation_dim,
        action_dim=task.action_dim,
        horizon=task.horizon,
        split_on_terminals=task.family != "antmaze",
    )


def locate(dataset: DatasetSpec, task: Task, datasets_folder: Path) -> Path:
    """The HDF5 file of `dataset`, recorded first when it is one that is generated and is not there yet."""
    if dataset.generate is not None:
        return _recorded(dataset.generate, task, datasets_folder)
    if dataset.path is not None:
        return Path(dataset.path).expanduser()
    url = DATASETS[dataset.name].url
    name = url.rsplit("/", 1)[1]
    for folder in _download_folders():
        if (folder / name).is_file():
            return folder / name
    raise DatasetError(
        f"{dataset.name}: no file {name} in {' or '.join(map(str, _download_folders()))}; download {url} there, "
        "or name a file with 'path' in the sweep"
    )


def _download_folders() -> list[Path]:
    """D4RL's own download folder, and before it $DMRAY_DATASETS."""
    named = os.environ.get("DMRAY_DATASETS")
    return [*([Path(named).expanduser()] if named else []), Path("~/.d4rl/datasets").expanduser()]


def _recorded(generation: MazeGeneration, task: Task, folder: Path) -> Path:
    digest = content_hash([RECORDING_VERSION, task.name, generation.model_dump(mode="json")])[:12]
    path = folder / f"{task.name}-{generation.behaviour}-{digest}.hdf5"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # trials that start together record it once
        if not path.exists():
            recorded = record_maze(task, generation)
            write_d4rl_hdf5(
                path, _as_arrays(recorded), {"task": task.name, "recorded_by": generation.model_dump_json()}
            )
    return path


def _as_arrays(recorded: RecordedTransitions) -> dict[str, np.ndarray]:
    return {
        "observations": recorded.observations,
        "actions": recorded.actions,
        "rewards": recorded.rewards,
        "terminals": recorded.terminals,
        "timeouts": recorded.timeouts,
        "infos/goal": recorded.goals,
    }
