"""Checks before the first trial starts of what would otherwise fail a trial hours later, or give it wrong numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dmray.datasets import WARNING
from dmray.errors import DatasetError, EngineError, StorageError
from dmray.policies import check_decoder
from dmray.records.phase import PhaseWriter
from dmray.rollout import furthest_number, make_engine
from dmray.sources import OpenedDataset, locate, open_dataset, phase_of_locating
from dmray.specs import DatasetSpec, TrialSpec
from dmray.storage import stored_file
from dmray.tasks import MINARI_SCHEME, task_of

_log = logging.getLogger(__name__)
_STARTS = 4


class CheckedData(NamedTuple):
    """The fingerprint of a data set's content, and what the simulator says about it: sentences for the records."""

    fingerprint: str
    warnings: tuple[str, ...]


def check(trials: Sequence[TrialSpec], recordings: Path, phases: PhaseWriter | None = None) -> dict[str, CheckedData]:
    """Check that every data set has its file (downloading it where possible) and every task its simulator, that the
    decode modes can be imported, and that the files can be read. Of a file in an object store only its place is
    checked, unless this machine has a copy: the driver's machine need not have the data.

    What was noted about the data is logged, once for each data set. So is a file that cannot be read while others can:
    its trials will fail, and the others run. Returns those that were read, by name. `phases` says what takes long.

    Raises:
        DatasetError: files or simulators are missing, or no file can be read; all of them are named.
        SpecError: the class of a decode mode cannot be imported.
    """
    for decode in {trial.evaluation.decode for trial in trials}:
        check_decoder(decode)
    datasets = list(dict.fromkeys(trial.dataset for trial in trials))
    missing = {dataset.name: _missing(dataset, recordings, phases) for dataset in datasets}
    _refuse([f"{name}: {problem}" for name, problem in missing.items() if problem])
    checked: dict[str, CheckedData] = {}
    unreadable: dict[str, str] = {}
    for dataset in (each for each in datasets if each.generate is None):  # others are recorded in the simulator itself
        try:
            if (elsewhere := _only_in_store(dataset)) is not None:  # `_missing` has asked the store for it
                _log.info("%s: %s is read by the machines that train on it, not here", dataset.name, elsewhere)
                continue
            if phases is not None:
                phases.enter("opening_data", dataset.name, if_slow=True)
            opened = open_dataset(dataset, task_of(dataset), recordings)
            found = CheckedData(opened.episodes.fingerprint, tuple(_suspicious(opened)))
            checked[dataset.name] = found
            _log_notes(dataset.name, [*opened.episodes.notes, *found.warnings])
        except StorageError as cause:  # trials may run on other machines, which have room
            _log_notes(dataset.name, [f"{WARNING}not checked on this machine: {cause}"])
        except DatasetError as cause:
            unreadable[dataset.name] = str(cause)
    if datasets and len(unreadable) == len(datasets):
        _refuse([f"{name}: {problem}" for name, problem in unreadable.items()])
    for name, problem in unreadable.items():
        _log.warning("%s: its trials will fail: %s", name, problem)
    return checked


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        names = "\n".join(f"  {problem}" for problem in problems)
        raise DatasetError(f"these data sets cannot be run here (leave them out with -o datasets=[...]):\n{names}")


def _missing(dataset: DatasetSpec, recordings: Path, phases: PhaseWriter | None) -> str | None:
    """What the data set lacks to be run."""
    task = task_of(dataset)
    try:
        make_engine(task, 1).close()
        if dataset.generate is not None:  # recorded by the first trial that wants it
            return None
        if _only_in_store(dataset) is not None:
            return None
        if phases is not None and (name := phase_of_locating(dataset, task, recordings)) != "opening_data":
            phases.enter(name, dataset.name)
        place = locate(dataset, task, recordings)
    except (DatasetError, EngineError) as problem:
        return str(problem)
    missing = not place.startswith(MINARI_SCHEME) and not Path(place).exists()
    return f"{place}: no such file" if missing else None


def _only_in_store(dataset: DatasetSpec) -> str | None:
    """The address of a file that an object store has, pinned, and of which this machine has no copy.

    Raises:
        DatasetError: the store does not have it.
        StorageError: the store refuses access, or does not answer.
    """
    stored = stored_file(dataset)
    return stored.address if stored is not None and stored.copy() is None else None


def _suspicious(opened: OpenedDataset) -> Iterator[str]:
    """A warning if the simulator gives numbers that are far from those of the file."""
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
