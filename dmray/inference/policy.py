"""A trained policy, loaded from a checkpoint: its trial, its task, its sizes, and how to act with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dmray.arguments import MAX_EPISODES, finite_number, line, place, whole_number
from dmray.errors import CheckpointError, SpecError
from dmray.files import user_path
from dmray.inference.acting import Rollout, act_on_windows
from dmray.inference.exported import is_exported, read_exported
from dmray.inference.weight_files import CONFIG
from dmray.policies import PolicySnapshot, SequencePolicy
from dmray.records import TrialFolder
from dmray.registry import short, short_repr
from dmray.rollout import Deviations
from dmray.specs import TrialSpec
from dmray.storage import fetch_from_store, is_url
from dmray.tasks import ReferenceScores, Task, task_of
from dmray.trial.checkpoints import load_checkpoint, load_policy_snapshot

_STEP = re.compile(r"step:([0-9]{1,15})")


@dataclass(frozen=True)
class Policy:
    """A trained policy on the CPU. Made by `load_policy`.

    `trial`: the spec of its trial. `task`: the task, with the reference returns and the observation size of the trial's
    data set. `step`: the number of optimizer steps. `folder`: the trial's folder; None for a policy from elsewhere.
    `dataset_fingerprint`: of the content that it was trained on; None for published weights.
    `action_std`: the deviation of each action dimension in its data; None: not known.
    """

    trial: TrialSpec
    snapshot: PolicySnapshot = field(repr=False)
    task: Task = field(repr=False)
    step: int
    folder: Path | None = None
    dataset_fingerprint: str | None = None
    action_std: tuple[float, ...] | None = field(default=None, repr=False)

    @cached_property
    def network(self) -> SequencePolicy:
        """The torch module, in evaluation mode."""
        return self.snapshot.build()

    @property
    def method(self) -> str:
        """The method's name, for example "dm"."""
        return self.trial.method

    @property
    def decode(self) -> str:
        """The decode mode with which its sweep evaluated the policy."""
        return self.trial.evaluation.decode

    @property
    def deviations(self) -> Deviations:
        """The deviations of its data, which are the units of noise in evaluations."""
        return Deviations(self.action_std, tuple(self.snapshot.weights["state_std"].tolist()))

    @property
    def takes_target(self) -> bool:
        """Whether the policy takes a target return."""
        return self.network.takes_target

    @property
    def predicts_subgoals(self) -> bool:
        """Whether the policy predicts subgoals (HDT, HDM)."""
        return self.network.method.predicts_subgoals

    @property
    def observation_dim(self) -> int:
        """The length of an observation."""
        return self.snapshot.recipe.shape.observation_dim

    @property
    def action_dim(self) -> int:
        """The length of an action."""
        return self.snapshot.recipe.shape.action_dim

    @property
    def action_limit(self) -> float:
        """Actions are in [-action_limit, action_limit]."""
        return self.snapshot.recipe.shape.action_limit

    @property
    def context_length(self) -> int:
        """The number of timesteps of a training window."""
        return self.snapshot.recipe.model.context_length

    @property
    def max_timesteps(self) -> int:
        """The number of timesteps of the longest episode that the policy can act in."""
        return self.snapshot.recipe.shape.max_timesteps

    @property
    def target_returns(self) -> tuple[float, ...]:
        """The raw target returns with which its sweep evaluated the policy; empty for methods that take none."""
        if not self.takes_target:
            return ()
        return tuple(self.trial.evaluation.target_returns or self.task.target_returns)

    def start(
        self,
        num_episodes: int | None = None,
        *,
        decode: str | None = None,
        target_return: float | Sequence[float] | None = None,
    ) -> Rollout:
        """Begin to act in `num_episodes` episodes in lockstep; None: in one episode, whose arrays have no first axis.

        `decode`: the decode mode; None: that of its sweep. `target_return` (raw): one number for all episodes, or one
        for each; None: the first of `target_returns`.

        Raises:
            SpecError: there is no such decode mode, the policy takes no target return, or the number of target returns
                is not the number of episodes.
        """
        rows = 1 if num_episodes is None else whole_number("num_episodes", num_episodes, 1, MAX_EPISODES)
        if target_return is not None and not self.takes_target:
            raise SpecError(f"target_return {short_repr(target_return)}: {self.method.upper()} takes no target return")
        given = target_return if target_return is not None else (self.target_returns or (0.0,))[0]
        try:
            targets = np.asarray(given)
            targets = targets.astype(np.float64) if targets.dtype.kind in "fiu" else np.asarray(None, np.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as cause:
            raise SpecError(f"target_return {short_repr(target_return)}: not a number") from cause
        if targets.shape not in ((), (rows,)):
            raise SpecError(f"target_return: {targets.size} numbers for {rows} episodes; give one number, or {rows}")
        if not np.isfinite(targets).all():
            raise SpecError(f"target_return {short_repr(target_return)}: not a finite number")
        return Rollout(
            self.network,
            self.decode if decode is None else decode,
            np.broadcast_to(targets, rows),
            zero_dims=self.task.zero_dims,
            single=num_episodes is None,
        )

    def act_on_windows(
        self,
        observations: ArrayLike,
        actions: ArrayLike,
        returns_to_go: ArrayLike | None = None,
        *,
        decode: str = "window",
        first_timestep: int = 0,
    ) -> np.ndarray:
        """The actions (B, A) at the last timestep of windows (B, T, ...): see `dmray.inference.act_on_windows`."""
        return act_on_windows(
            self.network, observations, actions, returns_to_go, decode=decode, first_timestep=first_timestep
        )

    def __str__(self) -> str:
        trial = self.trial
        return f"{trial.method.upper()} of {trial.dataset.name}, seed {trial.seed}, after {self.step:,} steps"


def load_policy(source: str | Path, checkpoint: str | None = None) -> Policy:
    """Load the policy in a checkpoint file, in a trial's folder, or in a folder that `dmray export` wrote.

    `source` may also be the URL of either in an object store: s3://bucket/prefix/<sweep>/trials/<trial>. `checkpoint`,
    for a trial's folder: final, best, last or step:<N>; None: final, or last if there is no final.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
        SpecError: `checkpoint` is not the name of one, or is given for a file.
        StorageError: the store has no such trial. StoreUnavailableError: the store does not answer.
    """
    given = place("source", source)
    if checkpoint is not None:
        require_checkpoint_name(checkpoint, ("final", "best", "last"))
    path = fetch_from_store(given) if is_url(given) else user_path(given)
    exported = is_exported(path)
    if exported and checkpoint is not None:
        raise SpecError(f"checkpoint {checkpoint}: {path} is an export, which has the weights of one; leave it out")
    file = path / CONFIG if exported else _checkpoint_in(path, checkpoint)
    if exported:
        trial, snapshot, content = read_exported(path)
    else:
        trial, snapshot = load_policy_snapshot(file)
        content = load_checkpoint(file)
    if not exported and path.is_dir() and path.parent.name == "trials" and trial.trial_id != path.name:
        raise CheckpointError(
            f"{file}: is of another trial, {trial.trial_id}; put the trial's own checkpoint back, or name the file to "
            "load it as it is"
        )
    policy = Policy(
        trial=trial,
        snapshot=snapshot,
        task=_task_in(file, trial, snapshot, content),
        step=_step_in(file, content),
        folder=None if exported else path if path.is_dir() else path.parent.parent,
        dataset_fingerprint=content["origin"]["dataset_fingerprint"],
        action_std=_action_std_in(content),
    )
    try:
        _ = policy.network  # raises if the weights are those of another network
        snapshot.check_finite()
    except CheckpointError as problem:
        raise CheckpointError(f"{file}: {problem}") from None
    return policy


def require_checkpoint_name(name: str, named: Sequence[str]) -> None:
    """Check that `name` is in `named` or is step:<N>.

    Raises:
        SpecError: it is not.
    """
    if name not in named and not _STEP.fullmatch(name):
        raise SpecError(f"checkpoint '{short(name)}': give one of {', '.join(named)}, or for example step:10000")


def checkpoints_in(source: str | Path) -> tuple[Path, tuple[str, ...]]:
    """A trial's folder on this machine, or a folder of checkpoints, and the names of the weights in it.

    Raises:
        CheckpointError: it is no folder, or has no weights.
        StorageError: the store has no such trial. StoreUnavailableError: the store does not answer.
    """
    given = place("source", source)
    path = fetch_from_store(given) if is_url(given) else user_path(given)
    names = stored_checkpoints(TrialFolder(path))
    if not names:
        raise CheckpointError(f"{path}: no checkpoints of a trial; give a trial's folder")
    return path, names


def stored_checkpoints(trial: TrialFolder) -> tuple[str, ...]:
    """The names of the weights that a trial's folder has: numbered ones, then best and final."""
    return (*trial.numbered_checkpoints(), *(name for name in ("best", "final") if trial.checkpoint(name).exists()))


def _task_in(file: Path, trial: TrialSpec, snapshot: PolicySnapshot, content: Mapping[str, Any]) -> Task:
    """The trial's task with the observation size and the reference returns of its data set."""
    try:
        task = task_of(trial.dataset)
    except SpecError as unknown:
        raise CheckpointError(f"{file}: {unknown}; if it is of another package, install that package") from None
    shape = snapshot.recipe.shape
    try:
        for name in ("observation_dim", "action_dim", "max_timesteps"):
            whole_number(name, getattr(shape, name), 1)
        if finite_number("action_limit", shape.action_limit) <= 0:
            raise SpecError(f"action_limit {shape.action_limit}: must be above 0")
    except SpecError as problem:
        raise CheckpointError(f"{file}: its sizes are damaged: {problem}") from None
    more = shape.observation_dim - task.observation_dim
    if more not in (0, task.appendix_dim) or shape.action_dim != task.action_dim:
        sizes, needed = (shape.observation_dim, shape.action_dim), (task.observation_dim, task.action_dim)
        raise CheckpointError(f"{file}: observation and action sizes {sizes}, but task '{task.name}' has {needed}")
    try:
        stored = content["origin"]["reference"]
        low, high = (finite_number(name, stored[name]) for name in ("minimum", "maximum"))
        reference = ReferenceScores(low, high, line("source", stored["source"]))
    except (KeyError, TypeError, SpecError) as cause:
        raise CheckpointError(f"{file}: its reference returns are damaged: {short_repr(str(cause))}") from cause
    if not low < high:
        raise CheckpointError(f"{file}: its reference returns are damaged: {low:g} is not below {high:g}")
    return replace(task.with_zeros(more), reference=reference)


def _step_in(file: Path, content: Mapping[str, Any]) -> int:
    try:
        return whole_number("step", content["step"] if "step" in content else content["trainer"]["step"], 0)
    except (KeyError, TypeError, SpecError) as cause:
        raise CheckpointError(f"{file}: its number of steps is damaged: {short_repr(str(cause))}") from cause


def _action_std_in(content: Mapping[str, Any]) -> tuple[float, ...] | None:
    """None in a checkpoint of an earlier dmray."""
    stored = content["origin"].get("action_std")
    return None if stored is None else tuple(stored)


def fit_task(policy: Policy, task: Task) -> Task:
    """`task` with the policy's observation size: zeros are appended if its data had numbers that no simulator gives.

    Raises:
        CheckpointError: the policy's sizes are not those of the task.
    """
    if task.name == policy.task.name:
        return policy.task
    missing = policy.observation_dim - task.observation_dim
    fitted = task.with_zeros(missing) if task.appendix_dim and missing > 0 else task
    if (policy.observation_dim, policy.action_dim) != (fitted.observation_dim, fitted.action_dim):
        sizes = f"observation size {policy.observation_dim}, action size {policy.action_dim}"
        needed = f"{task.observation_dim} and {task.action_dim}"
        raise CheckpointError(f"{policy} ({sizes}) cannot act in {task.name}, which has {needed}")
    return fitted


def _checkpoint_in(path: Path, checkpoint: str | None) -> Path:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise CheckpointError(f"{path}: not a regular file; give a checkpoint or a trial's folder")
        is_file = path.is_file()
    except OSError as cause:
        raise CheckpointError(f"{path}: cannot be read: {cause.strerror}") from cause
    if is_file and checkpoint is not None:
        raise SpecError(f"checkpoint {checkpoint}: {path} is one file; give the trial's folder")
    if is_file:
        return path
    if checkpoint is not None:
        trial = TrialFolder(path)
        if not trial.checkpoint(checkpoint).is_file():
            there = (*stored_checkpoints(trial), *(["last"] if trial.last_checkpoint.exists() else []))
            raise CheckpointError(f"{path}: no checkpoint '{checkpoint}'; there are {', '.join(there) or 'none'}")
        return trial.checkpoint(checkpoint)
    names = [path / "checkpoints" / name for name in ("final.pt", "last.pt")]
    found = next((name for name in names if name.is_file()), None)
    if found is None:
        what = "no checkpoint" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {what}; give a file (final.pt, best.pt, last.pt) or a trial's folder")
    return found
