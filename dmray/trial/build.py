"""Builds the trainer of a trial from its spec and data, and the ledger's record of what it was built from."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

from dmray.datasets import Episodes, action_deviations
from dmray.methods import METHODS
from dmray.models.backbones import BACKBONES
from dmray.packs.packed_trainer import PackedTrainer, ServerPlace
from dmray.packs.server import PackSettings
from dmray.policies import SequencePolicy
from dmray.records import AttemptStarted, provenance
from dmray.records.provenance import version_of
from dmray.sources import OpenedDataset
from dmray.specs import TrialSpec
from dmray.specs.decode import DECODE_MODES, parse_decode
from dmray.tasks import FAMILIES, Task
from dmray.tasks.registry import package_of_task
from dmray.training import Trainer
from dmray.training.build import build_policy, build_sampler
from dmray.trial.checkpoints import Origin
from dmray.trial.job import TrialJob

AnyTrainer = Trainer | PackedTrainer


def build_trainer(job: TrialJob, task: Task, episodes: Episodes) -> tuple[AnyTrainer, Origin]:
    """A trainer on the job's device before its first step, and the origin that its checkpoints will name."""
    trial, device = job.trial, job.device
    policy = build_policy(trial, task, episodes)
    origin = Origin(trial, episodes.fingerprint, policy.recipe, task.reference, action_deviations(episodes))
    if job.trials_per_pack > 1:
        recordings = job.sweep_folder.datasets
        return PackedTrainer(trial, policy, episodes.fingerprint, recordings, _pack_server(job)), origin
    sampler = build_sampler(trial, policy, episodes, device)
    return Trainer(policy.to(device), sampler, trial.training, trial.seed, device, job.capture), origin


def _pack_server(job: TrialJob) -> ServerPlace:
    """Shared by the trials of one sweep, on one machine and GPU, since the sweep's last start or resume."""
    settings = PackSettings(
        seats=job.trials_per_pack,
        device=job.device,
        capture=job.capture,
        deterministic=job.deterministic,
        torch_threads=job.torch_threads,
    )
    return ServerPlace(f"{job.sweep_folder.path} {job.command_number}", settings)


def attempt_started(
    job: TrialJob, attempt: int, trainer: AnyTrainer, origin: Origin, opened: OpenedDataset
) -> AttemptStarted:
    """The record of everything that the attempt's results may depend on."""
    return AttemptStarted(
        time_s=time.time(),
        attempt=attempt,
        from_step=trainer.steps_done,
        trial_id=job.trial.trial_id,
        spec=job.trial.model_dump(mode="json"),
        provenance={
            **provenance(),
            "pid": os.getpid(),
            "device": job.device,
            "captured": trainer.captured,
            "packed": job.trials_per_pack,
            "dataset_fingerprint": origin.dataset_fingerprint,
            "dataset_notes": [*opened.episodes.notes, *job.data_warnings],
            "dataset": _describe_data(opened.episodes),
            "policy": _describe_policy(trainer.policy),
            **evaluation_provenance(job.trial, opened.task),
            "scan_backend": trainer.scan_backend,
        },
    )


def evaluation_provenance(trial: TrialSpec, task: Task) -> dict[str, Any]:
    """The part of a record's provenance that the evaluation decides: `task`, `simulator`, `plugins`."""
    return {
        "task": _describe_task(task),
        "simulator": _describe_simulator(task),
        "plugins": _describe_plugins(trial, task),
    }


def _describe_data(episodes: Episodes) -> dict[str, Any]:
    """Sizes and undiscounted returns; one pass over the rewards."""
    returns = episodes.returns()
    return {
        "episodes": episodes.num_episodes,
        "transitions": episodes.num_transitions,
        "length_mean": float(episodes.lengths.mean()),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
    }


def _describe_policy(policy: SequencePolicy) -> dict[str, Any]:
    """What a caller of the policy needs to know."""
    shape = policy.recipe.shape
    return {
        "observation_dim": shape.observation_dim,
        "action_dim": shape.action_dim,
        "takes_target": policy.takes_target,
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
    }


def _describe_plugins(trial: TrialSpec, task: Task) -> dict[str, str | None]:
    """The package, with its version, of each part of the trial that another package brings."""
    method = METHODS[trial.method]
    backbone = method.backbone.name
    brought = (METHODS.package_of(trial.method), BACKBONES.package_of(backbone) if backbone in BACKBONES else None)
    return {
        "method": ", ".join(dict.fromkeys(package for package in brought if package)) or None,
        "task": package_of_task(task),
        "decode": DECODE_MODES.package_of(parse_decode(trial.evaluation.decode).mode.name),
    }


def _describe_task(task: Task) -> dict[str, Any]:
    """What a score depends on beside the trial's spec."""
    names = ("name", "protocol", "engine", "env_id", "horizon", "observation_dim", "zero_dims")
    return {**{name: getattr(task, name) for name in names}, "reference": asdict(task.reference)}


def _describe_simulator(task: Task) -> dict[str, str]:
    """The releases of the packages that decide the simulator's numbers, as far as they are installed here."""
    family = FAMILIES[task.protocol, task.family]
    return {name: version for name in family.simulator_packages if (version := version_of(name)) is not None}
