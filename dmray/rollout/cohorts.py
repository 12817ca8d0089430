"""Closed-loop evaluation in cohorts: fixed sets of episodes in lockstep, so the policy gets one batch a step.

The request alone decides which episodes form a cohort. So the episodes are the same bit for bit in any process, in any
order, for any number of workers. Return-to-go is in raw units here; the policy scales it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from dmray.policies import Decoder, SequencePolicy, make_decoder
from dmray.rollout.engine import Step, VectorEngine
from dmray.rollout.noise import Noise, NoiseSource
from dmray.rollout.simulator_registry import make_engine
from dmray.tasks import Task

Watch = Callable[[np.ndarray, np.ndarray, np.ndarray, Step], None]


@dataclass(frozen=True)
class EvaluationRequest:
    """`episodes` episodes under each of `target_returns` (None for methods that take none).

    Episode i has the same seed, so the same start, under every target. `decode` is a mode of `make_decoder`.
    `noise`: on observations and actions; None: none.
    """

    task: Task
    episodes: int
    seed: int
    decode: str
    target_returns: tuple[float | None, ...]
    cohort_size: int
    noise: Noise | None = None


@dataclass(frozen=True)
class Row:
    """One episode to roll out: its index in the request, and its target return."""

    index: int
    target_return: float | None


@dataclass(frozen=True)
class Cohort:
    """Episodes that are rolled out together: up to `cohort_size` indices, each under every target."""

    rows: tuple[Row, ...]


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished episode; `episode_return` is undiscounted and raw, `length` counts its steps."""

    index: int
    seed: int
    target_return: float | None
    episode_return: float
    length: int


def cohorts(request: EvaluationRequest) -> tuple[Cohort, ...]:
    """The request's work in a fixed order: by episode index, `cohort_size` indices at a time."""
    return tuple(
        Cohort(tuple(Row(index, target) for target in request.target_returns for index in indices))
        for first in range(0, request.episodes, request.cohort_size)
        for indices in [range(first, min(first + request.cohort_size, request.episodes))]
    )


def episode_seed(base: int, index: int) -> int:
    """The seed of episode `index`, in [0, 2**31): the range that every simulator takes."""
    return int(np.random.SeedSequence(base, spawn_key=(index,)).generate_state(1)[0] >> 1)


def run_cohort(
    policy: SequencePolicy, request: EvaluationRequest, cohort: Cohort, watch: Watch | None = None
) -> tuple[EpisodeRecord, ...]:
    """Roll `cohort` out with `policy`, which is in evaluation mode and is not changed; one record a row, in order.

    `watch` is called after each step with the live rows, their observations, their actions (both without noise) and the
    step's results.

    Raises:
        EngineError: the task has no simulator here.
        FloatingPointError: the policy decided an action that is not finite.
    """
    with closing(make_engine(request.task, len(cohort.rows))) as engine:
        return roll_out(make_decoder(policy, request.decode, len(cohort.rows)), engine, request, cohort, watch)


def roll_out(
    decoder: Decoder, engine: VectorEngine, request: EvaluationRequest, cohort: Cohort, watch: Watch | None = None
) -> tuple[EpisodeRecord, ...]:
    """`run_cohort` with the decoder and the engine given, both fresh and of as many rows as the cohort."""
    seeds = [episode_seed(request.seed, row.index) for row in cohort.rows]
    returns_to_go = np.array([row.target_return or 0.0 for row in cohort.rows], dtype=np.float64)
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), dtype=np.int64)
    observations, live = engine.reset(seeds), np.arange(len(seeds))
    noise = None if request.noise is None else NoiseSource(request.noise, seeds, request.task.action_limit)
    while True:
        seen = observations if noise is None else noise.seen(observations)
        actions = decoder.decide(seen, returns_to_go[live])
        if not np.isfinite(actions).all():
            raise FloatingPointError(f"{request.task.name}: the policy decided an action that is not finite")
        step = engine.step(actions if noise is None else noise.done(actions), live)
        if watch is not None:
            watch(live, observations, actions, step)
        observations = step.observations
        returns[live] += step.rewards
        returns_to_go[live] -= step.rewards
        lengths[live] += 1
        running = np.flatnonzero(~(step.terminated | step.truncated))
        if not running.size:
            break
        if running.size < live.size:  # ended rows are neither stepped nor batched any more
            decoder.keep(running)
            if noise is not None:
                noise.keep(running)
            observations, live = observations[running], live[running]
    return tuple(
        EpisodeRecord(row.index, seed, row.target_return, float(episode_return), int(length))
        for row, seed, episode_return, length in zip(cohort.rows, seeds, returns, lengths, strict=True)
    )
