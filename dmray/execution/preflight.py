"""What would fail a trial hours from now, told before the first one starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmray.errors import DatasetError
from dmray.execution.datasets import locate
from dmray.rollout import ENGINES
from dmray.specs import DatasetSpec, TrialSpec
from dmray.tasks import task_of


def check(trials: Sequence[TrialSpec], datasets_folder: Path) -> None:
    """Every data set has its file and every task its simulator.

    Raises:
        DatasetError: something is missing; all of it is named.
    """
    problems = [problem for dataset in _datasets(trials) if (problem := _problem(dataset, datasets_folder))]
    if problems:
        names = "\n".join(f"  {problem}" for problem in problems)
        raise DatasetError(
            f"{len(problems)} data sets cannot be run here (leave them out with -o datasets=[...]):\n{names}"
        )


def _datasets(trials: Sequence[TrialSpec]) -> list[DatasetSpec]:
    return list(dict.fromkeys(trial.dataset for trial in trials))


def _problem(dataset: DatasetSpec, datasets_folder: Path) -> str | None:
    task = task_of(dataset)
    if task.engine not in ENGINES:
        return f"{dataset.name}: the {task.family} family has no simulator here yet"
    if dataset.generate is not None:
        return None
    try:
        path = locate(dataset, task, datasets_folder)
    except DatasetError as missing:
        return str(missing)
    return None if path.is_file() else f"{dataset.name}: {path}: no such file"
