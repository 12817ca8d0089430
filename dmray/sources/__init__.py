"""Where transitions come from: D4RL's files, Minari, a path, or episodes recorded here; all are read as `Episodes`."""

from dmray.sources.locate import fetch_published, locate, phase_of_locating, remote_file
from dmray.sources.opening import OpenedDataset, file_rules, open_dataset, open_file, task_of_file
from dmray.sources.putting import put_file, put_published
from dmray.sources.recordings import recorded_file, require_room_to_record, write_recording

__all__ = [
    "OpenedDataset",
    "fetch_published",
    "file_rules",
    "locate",
    "open_dataset",
    "open_file",
    "phase_of_locating",
    "put_file",
    "put_published",
    "recorded_file",
    "remote_file",
    "require_room_to_record",
    "task_of_file",
    "write_recording",
]
