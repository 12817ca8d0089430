"""Tasks, and the data sets published for them, as data. No numpy, no simulator: planning stays instant."""

from dmray.tasks.family import RANDOM, TaskFamily
from dmray.tasks.recordings import recording_path
from dmray.tasks.registry import (
    DATASETS,
    FAMILIES,
    GROUP,
    MADE,
    PROTOCOLS,
    RETIRED,
    TASKS,
    behaviours_of,
    check_behaviour,
    entry_of,
    families_by_behaviours,
    find_names,
    made_protocol,
    protocol_of,
    task_of,
    tasks_with_sizes,
)
from dmray.tasks.task import MINARI_SCHEME, DatasetEntry, ReferenceScores, SubtaskGoal, Task

__all__ = [
    "DATASETS",
    "FAMILIES",
    "GROUP",
    "MADE",
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
    "behaviours_of",
    "check_behaviour",
    "entry_of",
    "families_by_behaviours",
    "find_names",
    "made_protocol",
    "protocol_of",
    "recording_path",
    "task_of",
    "tasks_with_sizes",
]
