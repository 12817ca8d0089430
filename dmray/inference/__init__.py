"""Trained policies from checkpoints: load, act, evaluate, record. No Ray and no MLflow needed."""

from dmray.inference.acting import Rollout, act_on_windows
from dmray.inference.evaluation import (
    Evaluation,
    PolicyFunction,
    evaluate,
    evaluation_request,
    recorded_evaluation,
    watch_episodes,
)
from dmray.inference.policy import Policy, load_policy
from dmray.inference.recording import record_checkpoint

__all__ = [
    "Evaluation",
    "Policy",
    "PolicyFunction",
    "Rollout",
    "act_on_windows",
    "evaluate",
    "evaluation_request",
    "load_policy",
    "record_checkpoint",
    "recorded_evaluation",
    "watch_episodes",
]
