"""Offline data: D4RL files, statistics, subgoal labels, training windows."""

from dmray.data.d4rl_hdf5 import FileRules, check_is_d4rl, read_d4rl_hdf5, write_d4rl_hdf5
from dmray.data.episodes import Episodes
from dmray.data.mapped import mapped
from dmray.data.minari_dataset import (
    MinariFacts,
    download_minari,
    minari_facts,
    minari_metadata_file,
    read_minari,
)
from dmray.data.pay_once import Subtask
from dmray.data.statistics import Statistics
from dmray.data.subgoals import subgoal_rows
from dmray.data.windows import Windows, WindowSampler

__all__ = [
    "Episodes",
    "FileRules",
    "MinariFacts",
    "Statistics",
    "Subtask",
    "WindowSampler",
    "Windows",
    "check_is_d4rl",
    "download_minari",
    "mapped",
    "minari_facts",
    "minari_metadata_file",
    "read_d4rl_hdf5",
    "read_minari",
    "subgoal_rows",
    "write_d4rl_hdf5",
]
