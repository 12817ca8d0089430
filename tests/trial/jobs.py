"""A trial's job, evaluations whose scores a test writes down, and ways to end a trial in the middle."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from dmray.policies import PolicySnapshot
from dmray.records import EvaluationDone, SweepFolder, TrainProgress, TrialDone, read_ledger
from dmray.rollout import EpisodeRecord, EvaluationRequest
from dmray.trial.evaluation import EvaluationFuture
from dmray.trial.job import TrialJob
from tests.sweeps import tiny_plan

RULE = {"grace_steps": 20, "reduction_factor": 2}

ONE_METHOD = {
    "grid": [{"methods": ["dm"], "models": [{"d_model": 16, "n_layer": n, "context_length": 4} for n in (1, 2, 3)]}],
    "early_stopping": RULE,
}


class Killed(BaseException):
    """Stands for kill -9: nothing in the package may catch it."""


def job(storage: Path, method: str = "dm", **changes: Any) -> TrialJob:
    plan = tiny_plan(storage, **changes)
    trial = next(trial for trial in plan.trials if trial.method == method)
    return TrialJob.of(trial, plan.sweep, SweepFolder(storage, plan.sweep.name))


def records_of(job: TrialJob, kind: type) -> list[Any]:
    return [record for record in read_ledger(job.folder.ledger) if isinstance(record, kind)]


def science(job: TrialJob) -> list[dict[str, Any]]:
    """What a trial measured, without clocks and rates."""
    timed = {"time_s", "wall_s", "steps_per_s", "train_s", "system"}
    kinds = (TrainProgress, EvaluationDone, TrialDone)
    records = [record for record in read_ledger(job.folder.ledger) if isinstance(record, kinds)]
    ordered = sorted(records, key=lambda record: (record.kind, record.step))
    return [record.model_dump(exclude=timed) for record in ordered]


class ScriptedService:
    """Evaluations with scripted returns, one per submission; they end when the test says so, or at once."""

    def __init__(self, returns: list[float], at_once: bool = True) -> None:
        self.returns, self.at_once = list(returns), at_once
        self.submitted: list[tuple[PolicySnapshot, EvaluationFuture, tuple[EpisodeRecord, ...]]] = []

    def submit(self, snapshot: PolicySnapshot, request: EvaluationRequest) -> EvaluationFuture:
        value = self.returns.pop(0)
        episodes = tuple(
            EpisodeRecord(index=index, seed=index, target_return=target, episode_return=value, length=3)
            for target in request.target_returns
            for index in range(request.episodes)
        )
        future: EvaluationFuture = Future()
        self.submitted.append((snapshot, future, episodes))
        if self.at_once:
            future.set_result(episodes)
        return future


class StopAt:
    """Kills the worker when it reports a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, step: int, score: float | None) -> None:
        if step == self.step:
            raise Killed
