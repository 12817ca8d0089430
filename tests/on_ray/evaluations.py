"""An evaluation to ask a pool for."""

from __future__ import annotations

from pathlib import Path

from dmray.models import MambaConfig
from dmray.policies import PolicyRecipe, PolicyShape, SequencePolicy, snapshot
from dmray.tasks import task_of
from dmray.trial.evaluation import request_for
from tests.sweeps import tiny_plan


def policy_and_request(storage: Path, episodes: int = 12):  # type: ignore[no-untyped-def]
    evaluation = {"episodes": episodes, "every_steps": 20, "cohort_size": 3}
    trial = tiny_plan(storage, evaluation=evaluation).trials[0]
    task = task_of(trial.dataset)
    shape = PolicyShape(task.observation_dim, task.action_dim, task.action_limit, task.horizon)
    config = MambaConfig(d_model=16, n_layer=1, context_length=4)
    policy = SequencePolicy(PolicyRecipe("dm", config, "paper", shape, 1.0))
    return snapshot(policy), request_for(trial, task, takes_target=False)
