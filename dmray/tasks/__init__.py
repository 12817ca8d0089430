"""Tasks and the data sets published for them, as data. Standard library only: planning stays instant."""

from dmray.errors import SpecError
from dmray.registry import lookup, unknown
from dmray.specs import DatasetSpec
from dmray.tasks.catalog import DATASETS, PROTOCOL, TASKS
from dmray.tasks.task import DatasetEntry, ReferenceScores, Task

__all__ = ["DATASETS", "PROTOCOL", "TASKS", "DatasetEntry", "ReferenceScores", "Task", "task_of"]


def task_of(dataset: DatasetSpec) -> Task:
    """The task that `dataset` is evaluated in: the catalog's, or the one named beside a file or a recording.

    Raises:
        SpecError: no such data set or task (with the nearest name), or a task that is not the data set's.
    """
    entry = DATASETS.get(dataset.name)
    if dataset.task is None:
        if entry is None:
            cure = "; a data set of your own needs 'task' and 'path' (or 'generate')"
            raise SpecError(unknown("data set", dataset.name, DATASETS) + cure)
        return TASKS[entry.task]
    task = lookup("task", dataset.task, TASKS, SpecError)
    if entry is not None and entry.task != task.name:
        raise SpecError(f"data set '{dataset.name}' belongs to task '{entry.task}', not '{task.name}'")
    if entry is None and dataset.path is None and dataset.generate is None:
        raise SpecError(f"data set '{dataset.name}' is not in the catalog: name its file with 'path', or 'generate' it")
    if dataset.generate is not None and task.family != "maze2d":
        raise SpecError(f"data set '{dataset.name}': only maze2d tasks can be generated, not '{task.name}'")
    return task
