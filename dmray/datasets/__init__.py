"""Offline data: D4RL files, statistics, subgoal labels, training windows."""

from dmray.datasets.checked_rows import FileRules
from dmray.datasets.d4rl_hdf5 import (
    FileSizes,
    RecordedTransitions,
    check_is_d4rl,
    read_d4rl_hdf5,
    read_sizes,
    write_d4rl_hdf5,
)
from dmray.datasets.episodes import WARNING, Episodes, part_of
from dmray.datasets.mapped import find_mapped, in_available_memory, write_mapped
from dmray.datasets.minari_dataset import (
    MinariFacts,
    download_minari,
    minari_facts,
    minari_metadata_file,
    read_minari,
)
from dmray.datasets.statistics import Statistics, action_deviations
from dmray.datasets.subgoals import subgoal_rows
from dmray.datasets.subtask_rewards import Subtask
from dmray.datasets.windows import Draw, Windows, WindowSampler

__all__ = [
    "WARNING",
    "Draw",
    "Episodes",
    "FileRules",
    "FileSizes",
    "MinariFacts",
    "RecordedTransitions",
    "Statistics",
    "Subtask",
    "WindowSampler",
    "Windows",
    "action_deviations",
    "check_is_d4rl",
    "download_minari",
    "find_mapped",
    "in_available_memory",
    "minari_facts",
    "minari_metadata_file",
    "part_of",
    "read_d4rl_hdf5",
    "read_minari",
    "read_sizes",
    "subgoal_rows",
    "write_d4rl_hdf5",
    "write_mapped",
]
