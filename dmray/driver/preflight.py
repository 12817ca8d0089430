"""Checks before the first trial starts of what would otherwise fail a trial hours later."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dmray.errors import DatasetError, EngineError, StorageError
from dmray.policies import check_decoder
from dmray.rollout import make_engine
from dmray.sources import locate, open_dataset
from dmray.specs import DatasetSpec, TrialSpec
from dmray.tasks import MINARI_SCHEME, task_of


def check(trials: Sequence[TrialSpec], recordings: Path) -> None:
    """Check that every data set has its file (downloading it where possible), every task its simulator, and that the
    decode modes can be imported.

    Raises:
        DatasetError: files or simulators are missing; all of them are named.
        SpecError: the class of a decode mode cannot be imported.
    """
    for decode in {trial.evaluation.decode for trial in trials}:
        check_decoder(decode)
    problems = [problem for dataset in _datasets(trials) if (problem := _problem(dataset, recordings))]
    if problems:
        names = "\n".join(f"  {problem}" for problem in problems)
        raise DatasetError(f"these data sets cannot be run here (leave them out with -o datasets=[...]):\n{names}")


def fingerprints(trials: Sequence[TrialSpec], recordings: Path) -> dict[str, str]:
    """The fingerprints of data sets that are files, by name. They are read once, as their trials would do.

    A data set that cannot be read is left out: its trials say why.
    """
    found = {}
    for dataset in _datasets(trials):
        if dataset.generate is None:
            with suppress(DatasetError, StorageError):
                found[dataset.name] = open_dataset(dataset, task_of(dataset), recordings).episodes.fingerprint
    return found


def _datasets(trials: Sequence[TrialSpec]) -> list[DatasetSpec]:
    return list(dict.fromkeys(trial.dataset for trial in trials))


def _problem(dataset: DatasetSpec, recordings: Path) -> str | None:
    task = task_of(dataset)
    try:
        make_engine(task, 1).close()
        if dataset.generate is not None:  # recorded by the first trial that wants it
            return None
        place = locate(dataset, task, recordings)
    except (DatasetError, EngineError) as problem:
        return f"{dataset.name}: {problem}"
    missing = not place.startswith(MINARI_SCHEME) and not Path(place).is_file()
    return f"{dataset.name}: {place}: no such file" if missing else None
