"""Tasks and the data sets published for them, as data. Standard library only: planning stays instant."""

from dmray.errors import SpecError
from dmray.registry import lookup, unknown
from dmray.specs import DatasetSpec
from dmray.tasks.catalog import BULLET, MINARI, MUJOCO, PROTOCOLS, TASKS
from dmray.tasks.published import DATASETS, MINARI_SCHEME, RETIRED
from dmray.tasks.task import DatasetEntry, ReferenceScores, Task

__all__ = [
    "BULLET",
    "DATASETS",
    "MINARI",
    "MINARI_SCHEME",
    "MUJOCO",
    "PROTOCOLS",
    "RETIRED",
    "TASKS",
    "DatasetEntry",
    "ReferenceScores",
    "Task",
    "entry_of",
    "task_of",
]


def entry_of(name: str) -> DatasetEntry:
    """The published data set of that name.

    Raises:
        SpecError: there is none (with the nearest name), or it is one that should not be used (with the reason).
    """
    if name in RETIRED:
        raise SpecError(f"data set '{name}': {RETIRED[name]}")
    return lookup("data set", name, DATASETS, SpecError)


def task_of(dataset: DatasetSpec) -> Task:
    """The task that `dataset` is evaluated in: the catalog's, or the one named beside a file or a recording.

    Raises:
        SpecError: no such data set or task (with the nearest name), or a task that is not the data set's.
    """
    entry = DATASETS.get(dataset.name)
    if dataset.task is None:
        if entry is None and dataset.name not in RETIRED:
            if dataset.path is not None:
                raise SpecError(f"data set '{dataset.name}' is not in the catalog: name its 'task' beside its 'path'")
            cure = " (all: python -m dmray.data list); a data set of your own needs 'task' and 'path' (or 'generate')"
            raise SpecError(unknown("data set", dataset.name, DATASETS) + cure)
        return TASKS[entry_of(dataset.name).task]
    task = lookup("task", dataset.task, TASKS, SpecError)
    if entry is not None and entry.task != task.name:
        raise SpecError(f"data set '{dataset.name}' belongs to task '{entry.task}', not '{task.name}'")
    if entry is None and dataset.path is None and dataset.generate is None:
        raise SpecError(f"data set '{dataset.name}' is not in the catalog: name its file with 'path', or 'generate' it")
    if dataset.generate is not None and dataset.generate.behaviour != "random" and task.family != "maze2d":
        raise SpecError(
            f"data set '{dataset.name}': only maze2d has a controller to record ('{dataset.generate.behaviour}'); "
            f"'{task.name}' takes behaviour: random"
        )
    return task
