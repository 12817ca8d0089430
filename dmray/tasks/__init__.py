"""Tasks, and the data sets published for them, as data. No numpy, no simulator: planning stays instant."""

from dmray.tasks.family import RANDOM, TaskFamily
from dmray.tasks.recordings import recording_path
from dmray.tasks.registry import (
    DATASETS,
    FAMILIES,
    GROUP,
    PROTOCOLS,
    RETIRED,
    TASKS,
    check_behaviour,
    entry_of,
    find_names,
    task_of,
    tasks_with_sizes,
)
from dmray.tasks.task import MINARI_SCHEME, DatasetEntry, ReferenceScores, SubtaskGoal, Task

__all__ = [
    "DATASETS",
    "FAMILIES",
    "GROUP",
    "MINARI_SCHEME",
    "PROTOCOLS",
    "RANDOM",
    "RETIRED",
    "TASKS",
    "DatasetEntry",
    "ReferenceScores",
    "SubtaskGoal",
    "Task",
    "TaskFamily",
    "check_behaviour",
    "entry_of",
    "find_names",
    "recording_path",
    "task_of",
    "tasks_with_sizes",
]
