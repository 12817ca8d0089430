"""The evaluation service of a trial: submit a snapshot, continue training, collect the episodes later."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from itertools import groupby
from typing import Any, Protocol

import numpy as np

from dmray.policies import PolicySnapshot
from dmray.records.records import TargetResult
from dmray.rollout import Deviations, EpisodeRecord, EvaluationRequest, Noise, cohorts, run_cohort
from dmray.specs import TrialSpec
from dmray.tasks import Task

EvaluationFuture = Future[tuple[EpisodeRecord, ...]]


class EvaluationService(Protocol):
    """Rolls out episodes for trials. The result depends on snapshot and request alone, not on the implementation."""

    def submit(self, snapshot: PolicySnapshot, request: EvaluationRequest) -> EvaluationFuture:
        """Start one evaluation; the future holds its episodes in the order of `cohorts(request)`."""


class InlineEvaluation:
    """Evaluates in the calling process; `submit` returns when the episodes are done."""

    def submit(self, snapshot: PolicySnapshot, request: EvaluationRequest) -> EvaluationFuture:
        done: EvaluationFuture = Future()
        policy = snapshot.build()
        done.set_result(tuple(record for cohort in cohorts(request) for record in run_cohort(policy, request, cohort)))
        return done


def request_for(
    trial: TrialSpec, task: Task, takes_target: bool, deviations: Deviations | None = None
) -> EvaluationRequest:
    """The evaluation that a trial's spec describes; `deviations`: of its data, or None to leave its noise out."""
    evaluation = trial.evaluation
    levels = (evaluation.action_noise, evaluation.observation_noise)
    targets: tuple[float | None, ...] = evaluation.target_returns or task.target_returns
    return EvaluationRequest(
        task=task,
        episodes=evaluation.episodes,
        seed=evaluation.seed,
        decode=evaluation.decode,
        target_returns=targets if takes_target else (None,),
        cohort_size=evaluation.cohort_size,
        noise=None if deviations is None else Noise.of(*levels, deviations, task.zero_dims),
    )


def episode_rows(request: EvaluationRequest, episodes: Sequence[EpisodeRecord]) -> list[dict[str, Any]]:
    """Rows for `write_episode_table`, by target return in the request's order, then by index."""
    task = request.task
    return [
        {
            "index": episode.index,
            "seed": episode.seed,
            "target_return": episode.target_return,
            "episode_return": episode.episode_return,
            "normalized_score": task.reference.normalize(episode.episode_return),
            "length": episode.length,
            "success": None if task.success_return is None else episode.episode_return >= task.success_return,
        }
        for episode in _ordered(request, episodes)
    ]


def about(request: EvaluationRequest, step: int, protocol: str) -> dict[str, str]:
    """The metadata that an episode table needs to be compared with another. `protocol`: `dmray.tasks.protocol_of`."""
    task = request.task
    return {
        "task": task.name,
        "protocol": protocol,
        "engine": task.engine,
        "env_id": task.env_id,
        "decode": request.decode,
        "evaluation_seed": str(request.seed),
        **noise_settings(request.noise),
        "step": str(step),
    }


def noise_settings(noise: Noise | None) -> dict[str, str]:
    """The levels of the noise by their names, without those that are 0."""
    levels = {} if noise is None else {"action_noise": noise.action_noise, "observation_noise": noise.observation_noise}
    return {name: f"{level:g}" for name, level in levels.items() if level}


def summarize(request: EvaluationRequest, episodes: Sequence[EpisodeRecord]) -> list[TargetResult]:
    """One result per target return, in the request's order, each over its episodes in the order of their index."""
    return [
        _target_result(request.task, target, list(group))
        for target, group in groupby(_ordered(request, episodes), key=lambda episode: episode.target_return)
    ]


def _ordered(request: EvaluationRequest, episodes: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    place = {target: position for position, target in enumerate(request.target_returns)}
    return sorted(episodes, key=lambda episode: (place[episode.target_return], episode.index))


def _target_result(task: Task, target: float | None, episodes: list[EpisodeRecord]) -> TargetResult:
    returns = np.array([episode.episode_return for episode in episodes])
    normalized = np.array([task.reference.normalize(value) for value in returns])
    return TargetResult.of(target, returns, normalized, [episode.length for episode in episodes])
