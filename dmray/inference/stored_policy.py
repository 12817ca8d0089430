"""Evaluating what a trial has stored, apart from any sweep."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dmray.errors import CheckpointError, SpecError
from dmray.policies import PolicySnapshot, make_decoder, predicted_subgoals
from dmray.rollout import (
    Cohort,
    EpisodeRecord,
    EvaluationRequest,
    Step,
    cohorts,
    make_engine,
    roll_out,
    run_cohort,
)
from dmray.rollout.pictures import WatchedEpisode
from dmray.specs import TrialSpec
from dmray.tasks import ReferenceScores, Task, task_of
from dmray.training import be_deterministic
from dmray.trial.checkpoints import load_checkpoint, load_policy_snapshot


@dataclass(frozen=True)
class StoredPolicy:
    """A policy, the trial it is of, the task as it was with the trial's data, and the steps it was trained for."""

    trial: TrialSpec
    snapshot: PolicySnapshot
    task: Task
    step: int


def load_stored(path: Path) -> StoredPolicy:
    """The policy in a checkpoint file, or in a trial's folder (the final one; the last, while it has not ended).

    Raises:
        CheckpointError: there is no checkpoint, or it is unreadable.
    """
    file = _checkpoint_in(path)
    trial, snapshot = load_policy_snapshot(file)
    content = load_checkpoint(file)
    step = content["step"] if "step" in content else content["trainer"]["step"]
    task = task_of(trial.dataset)
    fitted = task.with_zeros(snapshot.recipe.shape.observation_dim - task.observation_dim)
    return StoredPolicy(
        trial, snapshot, replace(fitted, reference=ReferenceScores(**content["origin"]["reference"])), step
    )


def evaluate_stored(
    stored: StoredPolicy, request: EvaluationRequest, workers: int = 1, deterministic: bool = False
) -> Iterator[tuple[EpisodeRecord, ...]]:
    """The episodes of `request`, cohort by cohort; the same for any number of `workers` (processes of one thread).

    `deterministic` as a sweep's `resources.deterministic`, which may change last bits.
    """
    works = [(stored.snapshot, request, cohort, deterministic) for cohort in cohorts(request)]
    if workers == 1 or len(works) == 1:
        yield from map(_run, works)
        return
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(works)), mp_context=spawned) as pool:
        yield from pool.map(_run, works)


def watch_stored(
    stored: StoredPolicy, request: EvaluationRequest, count: int, deterministic: bool = False
) -> list[WatchedEpisode]:
    """The first `count` episodes under the first target: the very episodes scored.

    They are rolled out once more, with all of their cohort beside them, since its size decides the last bits.

    Raises:
        SpecError: they are not all in the first cohort.
    """
    if count > min(request.cohort_size, request.episodes):
        most = min(request.cohort_size, request.episodes)
        raise SpecError(f"{count} pictures or videos: only episodes of the first cohort can be watched, {most}")
    seen: list[list[np.ndarray]] = [[] for _ in range(count)]
    led: list[list[np.ndarray]] = [[] for _ in range(count)]

    def watch(rows: np.ndarray, observations: np.ndarray, actions: np.ndarray, step: Step) -> None:
        subgoals = predicted_subgoals(decoder)
        for place, row in enumerate(rows.tolist()):
            if row < count:
                seen[row].append(observations[place])
                if subgoals is not None:
                    led[row].append(subgoals[place])

    _prepare(deterministic)
    cohort = cohorts(request)[0]
    decoder = make_decoder(stored.snapshot.build(), request.decode, len(cohort.rows))
    with closing(make_engine(request.task, len(cohort.rows))) as engine:
        records = roll_out(decoder, engine, request, cohort, watch)
    return [
        WatchedEpisode(np.stack(observations), np.stack(subgoals) if subgoals else None, record)
        for observations, subgoals, record in zip(seen, led, records[:count], strict=True)
    ]


def _run(work: tuple[PolicySnapshot, EvaluationRequest, Cohort, bool]) -> tuple[EpisodeRecord, ...]:
    snapshot, request, cohort, deterministic = work
    _prepare(deterministic)
    return run_cohort(snapshot.build(), request, cohort)


def _prepare(deterministic: bool) -> None:
    """Have this process compute as an evaluation actor does."""
    torch.set_num_threads(1)
    be_deterministic(deterministic)


def _checkpoint_in(path: Path) -> Path:
    if path.is_file():
        return path
    names = [path / "checkpoints" / name for name in ("final.pt", "last.pt")]
    found = next((name for name in names if name.is_file()), None)
    if found is None:
        raise CheckpointError(f"{path}: no checkpoint; name a file (final.pt, best.pt, last.pt) or a trial's folder")
    return found
