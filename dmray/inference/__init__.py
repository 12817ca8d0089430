"""Load trained policies from checkpoints, act with them, evaluate them, record episodes. Without Ray and MLflow."""

from dmray.inference.acting import Rollout, act_on_windows
from dmray.inference.evaluation import (
    Evaluation,
    PolicyFunction,
    evaluate,
    evaluation_request,
    record_checkpoint,
    recorded_evaluation,
    watch_episodes,
)
from dmray.inference.policy import Policy, load_policy

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
