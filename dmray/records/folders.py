"""The names of all files of a sweep.

<storage>/mlflow.db                              default MLflow store, shared by all sweeps of this storage path
<storage>/datasets/                              generated data sets, named by content
<storage>/<sweep>/sweep.json                     the resolved sweep and the plan of its last start
<storage>/<sweep>/.data_warnings.json            what the simulator says about the data sets, for the trials' records
<storage>/<sweep>/.phase.json                    what the driver does before trials run (a trial's folder has one too)
<storage>/<sweep>/sweep_id                       a random name, by which this folder's MLflow runs are found again
<storage>/<sweep>/trials/<trial_id>/             ledger.jsonl, checkpoints, evaluations, DONE.json
<storage>/<sweep>/rungs/<group>/<step>/          <trial_id>.json: the scores by which early stopping decides (a group
                                                 has one content of the data and one code)
<storage>/<sweep>/report/                        report.md, report.html, figures, tables
<storage>/<sweep>/ray/<attempt>/                 Ray's own files, disposable
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from dmray.errors import StorageError
from dmray.files import write_atomic, write_json
from dmray.records.disk import read_file

PHASE_NAME = ".phase.json"
_LONGEST_IDENTITY = 4096
_LONGEST_WARNINGS = 2**22
_data_warnings = TypeAdapter(dict[str, tuple[str, ...]])
_IDENTITY = re.compile(rb"[0-9a-f]{32}")


@dataclass(frozen=True)
class TrialFolder:
    """The files of one trial."""

    path: Path

    @property
    def ledger(self) -> Path:
        """Append-only JSONL, one record of `dmray.records.records` per line."""
        return self.path / "ledger.jsonl"

    @property
    def last_checkpoint(self) -> Path:
        """Everything a resumed run needs to continue the same stream of batches."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best_checkpoint(self) -> Path:
        """Weights of the best evaluation so far (ties: the earlier step), with its step and score."""
        return self.path / "checkpoints" / "best.pt"

    @property
    def final_checkpoint(self) -> Path:
        """Weights after the last step of a trial that has ended, with its step and last score."""
        return self.path / "checkpoints" / "final.pt"

    @property
    def evaluations(self) -> Path:
        """One Parquet file an evaluation, one row an episode."""
        return self.path / "evaluations"

    def episode_table(self, step: int) -> Path:
        return self.evaluations / f"step_{step:09d}.parquet"

    @property
    def lock(self) -> Path:
        """Held by the worker that runs the trial."""
        return self.path / ".worker.lock"

    @property
    def hang(self) -> Path:
        """The stack traces of an attempt that hung, until they are copied to the ledger."""
        return self.path / "hang.txt"

    @property
    def log(self) -> Path:
        """A log of its attempts for people."""
        return self.path / "log.txt"

    @property
    def phase(self) -> Path:
        """What its worker does now (`dmray.records.phase`)."""
        return self.path / PHASE_NAME

    @property
    def pictures(self) -> Path:
        """PNGs of episodes, drawn on request."""
        return self.path / "pictures"

    @property
    def videos(self) -> Path:
        """MP4s of episodes, drawn on request."""
        return self.path / "videos"

    def remove_parts(self) -> None:
        """Remove files that killed attempts left half written. The caller holds the trial's lock."""
        for folder in (self.path, self.last_checkpoint.parent, self.evaluations):
            for part in folder.glob(".*.part"):
                with contextlib.suppress(OSError):
                    part.unlink()

    @property
    def done(self) -> Path:
        """Repeats the ledger's end once the trial has a result (finished or diverged): it is not run again."""
        return self.path / "DONE.json"


@dataclass(frozen=True)
class SweepFolder:
    """The files of one sweep under a storage path."""

    storage: Path
    name: str

    @property
    def path(self) -> Path:
        return self.storage / self.name

    @property
    def manifest(self) -> Path:
        return self.path / "sweep.json"

    @property
    def identity(self) -> Path:
        return self.path / "sweep_id"

    @property
    def control(self) -> Path:
        """The command that holds: run, pause or stop."""
        return self.path / ".control.json"

    @property
    def data_warnings(self) -> Path:
        """What the driver's last check of the data warned of, by data set."""
        return self.path / ".data_warnings.json"

    @property
    def phase(self) -> Path:
        """What the driver does now (`dmray.records.phase`)."""
        return self.path / PHASE_NAME

    @property
    def driver_lock(self) -> Path:
        """Held by the driver of the sweep."""
        return self.path / ".driver.lock"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def datasets(self) -> Path:
        return self.storage / "datasets"

    @property
    def mlflow_database(self) -> Path:
        return self.storage / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.storage / "mlartifacts"

    def trial(self, trial_id: str) -> TrialFolder:
        return TrialFolder(self.path / "trials" / trial_id)

    def rung(self, group: str, step: int) -> Path:
        """The scores after `step` of the trials of a group that compete."""
        return self.path / "rungs" / group / f"{step:09d}"

    def rung_score(self, group: str, step: int, trial_id: str) -> Path:
        return self.rung(group, step) / f"{trial_id}.json"

    @property
    def ray_attempts(self) -> Path:
        return self.path / "ray"

    def sweep_id(self) -> str:
        """The random name of this folder, made on the first call (by one process: the sweep's driver).

        Raises:
            StorageError: its file is damaged.
        """
        try:
            content = read_file(self.identity, _LONGEST_IDENTITY)
        except FileNotFoundError:
            content = uuid4().hex.encode()
            write_atomic(self.identity, content)
        if not _IDENTITY.fullmatch(content.strip()):
            raise StorageError(
                f"{self.identity}: not the id of a sweep (32 hexadecimal digits); restore it from a copy or from the "
                "tags of its MLflow runs, or remove it: then MLflow gets new runs"
            )
        return content.strip().decode()

    def write_data_warnings(self, warnings: Mapping[str, Sequence[str]]) -> None:
        """Keep what the driver's check of the data found, for the records of the trials that it starts."""
        write_json(self.data_warnings, {name: list(sentences) for name, sentences in warnings.items() if sentences})

    def read_data_warnings(self, dataset: str) -> tuple[str, ...]:
        """Of the data set with that name; none before the first check.

        Raises:
            StorageError: the file is damaged.
        """
        try:
            return _data_warnings.validate_json(read_file(self.data_warnings, _LONGEST_WARNINGS)).get(dataset, ())
        except FileNotFoundError:
            return ()
        except ValidationError:
            raise StorageError(
                f"{self.data_warnings}: not what dmray writes there; remove it and use --resume"
            ) from None

    def make_writable(self) -> None:
        """Create the sweep's folder; `StorageError` when nothing can be written there."""
        probe = self.path / f".writable-{uuid4().hex[:8]}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as cause:
            above = next((folder for folder in (self.path, *self.path.parents) if folder.exists()), self.path)
            reason = cause.strerror if above.is_dir() else f"{above} is a file"
            raise StorageError(
                f"storage: cannot write to {self.path}: {reason}; choose another folder with --storage PATH"
            ) from cause
