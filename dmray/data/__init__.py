"""Offline data: D4RL files, statistics, subgoal labels, training windows."""

from dmray.data.d4rl_hdf5 import FileRules, read_d4rl_hdf5, write_d4rl_hdf5
from dmray.data.episodes import Episodes
from dmray.data.statistics import Statistics
from dmray.data.subgoals import subgoal_rows
from dmray.data.windows import Windows, WindowSampler

__all__ = [
    "Episodes",
    "FileRules",
    "Statistics",
    "WindowSampler",
    "Windows",
    "read_d4rl_hdf5",
    "subgoal_rows",
    "write_d4rl_hdf5",
]
