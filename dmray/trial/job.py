"""The job of a worker: a trial, where its files are, and settings that do not change what it measures."""

from __future__ import annotations

from typing import Literal

from dmray.coordination.commands import read_command
from dmray.coordination.store_commands import StoreCommands
from dmray.files import user_path
from dmray.planning.packing import why_unpacked
from dmray.records.disk import removed
from dmray.records.folders import SweepFolder, TrialFolder
from dmray.specs import EarlyStoppingSpec, Spec, SweepSpec, TrialSpec
from dmray.storage import is_url, open_store, sweep_folder
from dmray.storage.outages import retry_while_unavailable


class TrialJob(Spec):
    """One trial to run; sent between processes as JSON."""

    trial: TrialSpec
    storage: str
    sweep_name: str
    checkpoint_every_steps: int
    keep_every_steps: int | None
    no_progress_timeout_s: float | None
    min_free_gib: float
    log_every_steps: int
    torch_threads: int
    deterministic: bool
    max_pending_evaluations: int
    when_evaluations_lag: Literal["wait", "skip"]
    device: Literal["cpu", "cuda"]
    capture: Literal["auto", "off"]
    trials_per_pack: int  # 1: the trial is not packed
    early_stopping: EarlyStoppingSpec | None
    data_warnings: tuple[str, ...]  # what the driver's check of the data set found; for the records
    command_number: int  # the command to run; a worker stops when the sweep has a newer one
    extends: str | None = None  # the id of a trial with fewer training steps, whose records and state it begins with
    has_manifest: bool  # a sweep that was started; its folder must not be made anew

    @classmethod
    def of(cls, trial: TrialSpec, sweep: SweepSpec, folder: SweepFolder, extends: str | None = None) -> TrialJob:
        command = read_command(folder)
        return cls(
            trial=_with_absolute_path(trial),
            storage=sweep.storage if is_url(sweep.storage) else str(folder.storage),
            sweep_name=sweep.name,
            checkpoint_every_steps=sweep.faults.checkpoint_every_steps,
            keep_every_steps=sweep.faults.keep_every_steps,
            no_progress_timeout_s=sweep.faults.no_progress_timeout_s,
            min_free_gib=sweep.faults.min_free_gib,
            log_every_steps=sweep.tracking.log_every_steps,
            torch_threads=sweep.resources.torch_threads,
            deterministic=sweep.resources.deterministic,
            max_pending_evaluations=sweep.resources.max_pending_evaluations,
            when_evaluations_lag=sweep.resources.when_evaluations_lag,
            device=sweep.resources.trial_device,
            capture=sweep.resources.capture,
            trials_per_pack=sweep.resources.trials_per_pack if why_unpacked(trial) is None else 1,
            early_stopping=sweep.early_stopping_of(trial),
            data_warnings=folder.read_data_warnings(trial.dataset.name),
            extends=extends,
            command_number=command.number if command else 0,
            has_manifest=not is_url(sweep.storage) and folder.manifest.exists(),
        )

    def require_sweep(self) -> None:
        """Check that the sweep's folder was not removed since the job was made.

        Raises:
            StorageError: it was.
        """
        if self.has_manifest and not self.sweep_folder.manifest.exists():
            raise removed(self.sweep_folder.path)

    @property
    def sweep_folder(self) -> SweepFolder:
        """The folder on this machine where the worker writes."""
        return sweep_folder(self.storage, self.sweep_name, "worker")

    @property
    def folder(self) -> TrialFolder:
        return self.sweep_folder.trial(self.trial.trial_id)


def fetch_command(job: TrialJob) -> None:
    """Copy the store's current command to the worker's folder."""
    if is_url(job.storage):
        store = open_store(job.storage, job.sweep_name)
        retry_while_unavailable(lambda: StoreCommands(store).download(job.sweep_folder))


def _with_absolute_path(trial: TrialSpec) -> TrialSpec:
    """A relative data set path is relative to the driver's working folder; Ray's workers have other ones."""
    if trial.dataset.path is None or is_url(trial.dataset.path):
        return trial
    path = str(user_path(trial.dataset.path).absolute())
    return trial.model_copy(update={"dataset": trial.dataset.model_copy(update={"path": path})})
