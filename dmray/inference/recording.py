"""Episodes of a trained policy as a data set."""

from __future__ import annotations

from pathlib import Path

from dmray.inference.evaluation import evaluation_request
from dmray.inference.policy import load_policy
from dmray.policies import make_decoder
from dmray.rollout import RecordedTransitions, record_decoder
from dmray.tasks import Task

_COHORT_SIZE = 50


def record_checkpoint(
    source: str | Path, task: Task, transitions: int, seed: int, target_return: float | None
) -> RecordedTransitions:
    """At least `transitions` transitions of the policy of `source` (see `load_policy`) in `task`, in whole episodes.

    `target_return`: the return (raw) that it is asked for; None for the task's first target.

    Raises:
        CheckpointError: the file is no checkpoint, or its policy has another task's sizes.
        SpecError: a target return for a policy that takes none.
    """
    policy = load_policy(source)
    asked = target_return if target_return is not None else task.target_returns[0] if policy.takes_target else None
    targets = None if asked is None else (asked,)
    request = evaluation_request(policy, task, target_returns=targets, seed=seed, cohort_size=_COHORT_SIZE)
    return record_decoder(lambda rows: make_decoder(policy.network, request.decode, rows), request, transitions)
