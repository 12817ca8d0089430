"""A worker that takes a trial's steps with its leader, and does nothing else."""

from __future__ import annotations

import contextlib

import torch

from dmray.errors import TeamShutdownError
from dmray.sources import open_dataset
from dmray.tasks import task_of
from dmray.training import Team, be_deterministic
from dmray.trial.build import build_trainer
from dmray.trial.checkpoints import resume_checkpoint
from dmray.trial.job import TrialJob


def follow_trial(job: TrialJob, team: Team) -> None:
    """Step with the leader, which records, evaluates and saves for all (`run_trial`), until it dismisses the team.

    Raises:
        DatasetError, CheckpointError: as their names say.
        TeamError: another worker is gone.
    """
    with contextlib.suppress(TeamShutdownError):
        team.meet()  # from here on the leader holds the trial's folder; it takes no step without us
        torch.set_num_threads(job.torch_threads)
        be_deterministic(job.deterministic)
        opened = open_dataset(job.trial.dataset, task_of(job.trial.dataset), job.sweep_folder.datasets)
        trainer, origin = build_trainer(job, opened.task, opened.episodes, team)
        content = resume_checkpoint(job.folder.last_checkpoint, origin, job.device)
        if content is not None:
            trainer.load_state_dict(content["trainer"])
        while trainer.steps_done < job.trial.training.steps:
            trainer.step()
        team.meet()  # the last evaluations are the leader's
