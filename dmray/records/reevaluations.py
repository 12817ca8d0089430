"""Evaluations of a finished trial's checkpoints that were made after its training: one small file for each.

<storage>/<sweep>/reevaluations/<trial id>/<checkpoint>-<digest>.json

The digest is that of the conditions: of all that the result depends on. So an evaluation that is there is not made
again, a kill leaves whole files only, and two processes that evaluate the same sweep write the same file twice at
worst. Nothing of it is in the trial's ledger.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from dmray.errors import StorageError
from dmray.files import as_storage_error, write_atomic
from dmray.records.disk import read_file
from dmray.records.folders import SweepFolder
from dmray.records.ledger import read_done_marker, warn_once
from dmray.records.records import Count, EvaluationDone, Record, TargetResult
from dmray.specs import NoiseLevel, Spec, TrialSpec, content_hash, noise_text

_LARGEST = 2**27  # a million episodes under two target returns
_DIGITS = 12
_SAME_NAMES = ("decode", "episodes", "seed", "cohort_size", "action_noise", "observation_noise")  # as in EvaluationSpec


class Conditions(Spec):
    """All that the result of an evaluation depends on, beside the trial.

    `checkpoint`: "final", "best" or "step:10000". `ledger`: the digest of the trial's ledger at its end, which tells
    which training made the weights. `simulator` and `code`: of the process that evaluates, as in `ResultIdentity`.
    """

    checkpoint: str
    ledger: str
    decode: str
    episodes: Count
    seed: Count
    cohort_size: Count
    target_returns: tuple[float | None, ...]
    deterministic: bool
    simulator: dict[str, str]
    code: str
    action_noise: NoiseLevel = 0.0
    observation_noise: NoiseLevel = 0.0

    @property
    def digest(self) -> str:
        return content_hash(self.identity())[:_DIGITS]

    @property
    def protocol(self) -> str:
        """A digest of the conditions that all trials of a mean must share."""
        shared = {name: value for name, value in self.identity().items() if name != "ledger"}
        return content_hash(shared)[:_DIGITS]

    @property
    def settings(self) -> str:
        """What differs between the evaluations of one checkpoint, for people."""
        noise = noise_text(self)
        return f"{self.checkpoint}, {self.decode}, {self.episodes} episodes, seed {self.seed}{noise}"

    @property
    def label(self) -> str:
        """The checkpoint, and whether the evaluation used deterministic algorithms."""
        return f"{self.checkpoint} (deterministic)" if self.deterministic else self.checkpoint

    def applied_to(self, trial: TrialSpec) -> TrialSpec:
        """The trial with the evaluation that was made."""
        targets = tuple(target for target in self.target_returns if target is not None)
        changes = {
            **{name: getattr(self, name) for name in _SAME_NAMES},
            "target_returns": targets or trial.evaluation.target_returns,
            "quick_episodes": None,
        }
        return trial.model_copy(update={"evaluation": trial.evaluation.model_copy(update=changes)})


class Reevaluation(Record):
    """One evaluation of a checkpoint of a finished trial. `step`: of the weights. `provenance`: as of an attempt."""

    kind: Literal["reevaluation"] = "reevaluation"
    trial_id: str
    conditions: Conditions
    step: Count
    targets: Annotated[list[TargetResult], Field(min_length=1)]
    wall_s: float
    provenance: dict[str, Any]

    @property
    def evaluation(self) -> EvaluationDone:
        """The result as a trial's ledger would have it."""
        return EvaluationDone(
            time_s=self.time_s,
            step=self.step,
            decode=self.conditions.decode,
            seed=self.conditions.seed,
            targets=self.targets,
            wall_s=self.wall_s,
        )


def reevaluation_file(folder: SweepFolder, trial_id: str, conditions: Conditions) -> Path:
    """Where the result under these conditions is, or will be."""
    return folder.reevaluations / trial_id / _file_name(conditions)


def _file_name(conditions: Conditions) -> str:
    return f"{conditions.checkpoint.replace(':', '-')}-{conditions.digest}.json"


def write_reevaluation(folder: SweepFolder, record: Reevaluation) -> tuple[Path, bytes]:
    """Write the file of a result, whole or not at all; its path and its content.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    path = reevaluation_file(folder, record.trial_id, record.conditions)
    content = (record.model_dump_json() + "\n").encode()
    with as_storage_error(path, "repair the folder, then run dmray.evaluate again: finished evaluations are kept"):
        write_atomic(path, content)
    return path, content


def has_reevaluation(folder: SweepFolder, trial_id: str, conditions: Conditions) -> bool:
    """Whether the result under these conditions is there and can be read."""
    return _read(reevaluation_file(folder, trial_id, conditions), trial_id) is not None


def read_reevaluations(folder: SweepFolder, trial_id: str) -> list[Reevaluation]:
    """The results for the weights that the trial has now, oldest first.

    A file that is damaged, or of weights that an earlier training of this trial made, is left out with a warning.
    """
    names = sorted((folder.reevaluations / trial_id).glob("*.json"))
    found = [record for path in names if (record := _read(path, trial_id)) is not None]
    marker = read_done_marker(folder.trial(trial_id)) if found else None
    ledger = marker.ledger.digest if marker is not None and marker.ledger is not None else None
    current = [record for record in found if record.conditions.ledger == ledger]
    if len(current) < len(found):
        warn_once(
            f"{trial_id}: {len(found) - len(current)} evaluations are of weights that the trial has not any more, "
            f"and are left out; remove {folder.reevaluations / trial_id}"
        )
    return sorted(current, key=lambda record: record.time_s)


def _read(path: Path, trial_id: str) -> Reevaluation | None:
    try:
        record = Reevaluation.model_validate_json(read_file(path, _LARGEST))
    except FileNotFoundError:
        return None
    except (StorageError, ValidationError) as problem:
        said = problem if isinstance(problem, StorageError) else f"{path}: not a re-evaluation"
        warn_once(f"{said}; it is left out, and dmray.evaluate makes it again")
        return None
    if (
        record.trial_id != trial_id
        or path.name != reevaluation_file(SweepFolder(Path(), ""), "", record.conditions).name
    ):
        warn_once(f"{path}: has the result of another trial or of other settings, and is left out; remove it")
        return None
    return record
