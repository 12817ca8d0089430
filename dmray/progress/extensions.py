"""Longer training: which trials of a plan go on from a trial of the same folder with fewer training steps.

A trial's id contains `training.steps`, so a sweep file with more steps has new trials. Training does not depend on the
number of steps that are to come (the learning rate is warmed up and then constant). So the first steps of the longer
trial are those of the shorter one, and its records and its last checkpoint are the beginning of the longer trial.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import closing

from pydantic import ValidationError

from dmray.errors import StorageError
from dmray.planning.plan import Plan
from dmray.progress.trial_status import TrialStatus, trial_statuses
from dmray.records import LedgerTail, SweepFolder, TrialFolder
from dmray.specs import TrialSpec, content_hash

_HASH_DIGITS = 10
_MAY_BEGIN = (TrialStatus.WAITING, TrialStatus.FAILED)


def find_extensions(
    plan: Plan, folder: SweepFolder, statuses: Mapping[str, TrialStatus] | None = None
) -> dict[str, str]:
    """The id of the trial that each trial of `plan` goes on from, by trial id.

    That is a trial of the folder that is not in the plan, was begun, and differs in fewer `training.steps` only; of
    several the one with the most. Trials that have begun themselves, and those with nothing to go on from, are not in
    the result.
    """
    states = trial_statuses(plan, folder) if statuses is None else statuses
    own = set(plan.trial_ids)
    others: dict[str, list[str]] = {}
    for name in _folders(folder):
        if name not in own:
            others.setdefault(name[:-_HASH_DIGITS], []).append(name)
    found = {}
    for trial in plan.trials:
        files, names = folder.trial(trial.trial_id), others.get(trial.trial_id[:-_HASH_DIGITS], [])
        if not names or states[trial.trial_id] not in _MAY_BEGIN or _spec_of(files) is not None:
            continue
        if (shorter := longest_of(trial, (_spec_of(folder.trial(name)) for name in names))) is not None:
            found[trial.trial_id] = shorter.trial_id
    return found


def longest_of(trial: TrialSpec, others: Iterable[TrialSpec | None]) -> TrialSpec | None:
    """Of trials that differ from `trial` in fewer training steps only, the one with the most steps."""
    wanted = _without_steps(trial)
    shorter = [
        other
        for other in others
        if other is not None and other.training.steps < trial.training.steps and _without_steps(other) == wanted
    ]
    return max(shorter, key=lambda other: other.training.steps, default=None)


def _without_steps(trial: TrialSpec) -> str:
    content = trial.identity()
    return content_hash({**content, "training": {**content["training"], "steps": None}})


def _folders(folder: SweepFolder) -> list[str]:
    try:
        return sorted(os.listdir(folder.path / "trials"))
    except FileNotFoundError:
        return []
    except OSError as cause:
        raise StorageError(f"{folder.path / 'trials'}: cannot be read ({cause.strerror})") from cause


def _spec_of(folder: TrialFolder) -> TrialSpec | None:
    """The spec that the trial's last attempt had; None if it has no attempt, or its records are none of this folder."""
    spec = None
    try:
        with closing(LedgerTail(folder.ledger, light=True).records()) as records:
            spec = next((record.spec for record in records if record.kind == "attempt" and not record.trained_as), None)
        trial = TrialSpec.model_validate(spec) if spec is not None else None
    except (StorageError, ValidationError, OSError):  # damaged, or of a package that is not installed
        return None
    return trial if trial is not None and trial.trial_id == folder.path.name else None
