"""Checks before the first trial starts of what would otherwise fail a trial hours later, or give it wrong numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from dmray.datasets import WARNING
from dmray.errors import DatasetError, EngineError, StorageError
from dmray.policies import check_decoder
from dmray.rollout import furthest_number, make_engine
from dmray.sources import open_dataset
from dmray.specs import DatasetSpec, TrialSpec
from dmray.tasks import task_of

_log = logging.getLogger(__name__)
_STARTS = 4


def check(trials: Sequence[TrialSpec], recordings: Path) -> None:
    """Check that every data set can be read (downloading it where possible), that every task has its simulator, and
    that the decode modes can be imported. What was noted about the data is logged, once for each data set.

    Raises:
        DatasetError: data sets cannot be read or simulators are missing; all of them are named.
        SpecError: the class of a decode mode cannot be imported.
    """
    for decode in {trial.evaluation.decode for trial in trials}:
        check_decoder(decode)
    problems: list[str] = []
    for dataset in dict.fromkeys(trial.dataset for trial in trials):
        try:
            notes = list(_notes(dataset, recordings))
        except (DatasetError, EngineError) as problem:
            problems.append(f"  {dataset.name}: {problem}")
        else:
            _log_notes(dataset.name, notes)
    if problems:
        names = "\n".join(problems)
        raise DatasetError(f"these data sets cannot be run here (leave them out with -o datasets=[...]):\n{names}")


def _notes(dataset: DatasetSpec, recordings: Path) -> Iterator[str]:
    """What is to be known about the data set: how it was changed when it was read, and what is suspicious about it."""
    task = task_of(dataset)
    make_engine(task, 1).close()  # before a download: it may be missing
    if dataset.generate is not None:  # recorded by the first trial that wants it, in the simulator itself
        return
    try:
        opened = open_dataset(dataset, task, recordings)
    except StorageError as problem:  # trials may run on other machines, which have room
        yield f"{WARNING}not checked on this machine: {problem}"
        return
    yield from opened.episodes.notes
    number = furthest_number(opened.task, opened.episodes, _STARTS)
    if number.is_far:
        yield (
            f"{WARNING}{number}. Policies see it divided by its deviation in the file, so it outweighs all other "
            "numbers; the sweep trains on the file as it is. Is it the file of another task? (`python -m dmray.data "
            "verify` checks more)"
        )


def _log_notes(name: str, notes: Sequence[str]) -> None:
    for note in notes:
        level = logging.WARNING if note.startswith(WARNING) else logging.INFO
        _log.log(level, "%s: %s", name, note.removeprefix(WARNING))
