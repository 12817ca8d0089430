"""Episodes of a trained policy as a data set."""

from __future__ import annotations

from pathlib import Path

from dmray.errors import CheckpointError, SpecError
from dmray.policies import make_decoder
from dmray.rollout import EvaluationRequest, RecordedTransitions, record_decoder
from dmray.tasks import Task
from dmray.trial.checkpoints import load_policy_snapshot

_COHORT_SIZE = 50


def record_checkpoint(
    path: Path, task: Task, transitions: int, seed: int, target_return: float | None
) -> RecordedTransitions:
    """At least `transitions` transitions of the checkpoint's policy in `task`, in whole episodes.

    `target_return`: what it is asked for; else the task's first.

    Raises:
        CheckpointError: the file is no checkpoint, or its policy is of another task's sizes.
        SpecError: a target return for a policy that takes none.
    """
    trial, snapshot = load_policy_snapshot(path)
    shape = snapshot.recipe.shape
    fitted = task.with_zeros(shape.observation_dim - task.observation_dim) if task.appendix_dim else task
    if (shape.observation_dim, shape.action_dim) != (fitted.observation_dim, fitted.action_dim):
        sizes = f"{shape.observation_dim} numbers in, {shape.action_dim} out"
        raise CheckpointError(f"{path}: a policy of {trial.dataset.name} ({sizes}), which cannot act in {task.name}")
    policy = snapshot.build()
    if target_return is not None and not policy.takes_target:
        raise SpecError(f"--target-return {target_return:g}: {trial.method.upper()} takes no target return")
    asked = task.target_returns[0] if target_return is None else target_return
    target = asked if policy.takes_target else None
    request = EvaluationRequest(fitted, 0, seed, trial.evaluation.decode, (target,), _COHORT_SIZE)
    return record_decoder(lambda rows: make_decoder(policy, request.decode, rows), request, transitions)
