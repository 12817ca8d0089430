"""The toy family's simulator, in plain numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dmray.rollout import EvaluationRequest, RecordedTransitions, Simulator, Step, check_sizes, record_decoder
from dmray.specs import Generation
from dmray.tasks import Task

_SPEED, _NEAR, _NOISE = 0.1, 0.15, 0.3


class LineEngine:
    """`VectorEngine` of many points, each on a line of its own; it can be placed, so recorded files can be replayed."""

    def __init__(self, task: Task, num_episodes: int) -> None:
        check_sizes(task, observation_dim=1, action_dim=1)
        self._positions = np.zeros(num_episodes)
        self._elapsed = np.zeros(num_episodes, dtype=np.int64)
        self._horizon = task.horizon

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        starts = [np.random.default_rng(seed).uniform(-1, 1) for seed in seeds]
        return self.place(np.array(starts)[:, None])

    def place(self, observations: np.ndarray) -> np.ndarray:
        self._positions[:] = observations[:, 0]
        self._elapsed[:] = 0
        return self._positions[:, None].astype(np.float32)

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        self._positions[live] += _SPEED * np.clip(actions[:, 0], -1, 1)
        self._elapsed[live] += 1
        positions = self._positions[live]
        return Step(
            observations=positions[:, None].astype(np.float32),
            rewards=(np.abs(positions) < _NEAR).astype(np.float64),
            terminated=np.zeros(len(live), dtype=bool),
            truncated=self._elapsed[live] >= self._horizon,
        )

    def close(self) -> None:
        """Nothing but memory is held."""


class Homing:
    """`Decoder` of the behaviour `homing`: straight to zero, with noise."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def decide(self, observations: np.ndarray, returns_to_go: np.ndarray) -> np.ndarray:
        noise = _NOISE * self._rng.standard_normal(observations.shape)
        return np.clip(noise - observations / _SPEED, -1, 1).astype(np.float32)

    def keep(self, rows: np.ndarray) -> None:
        """No row has a state."""


def _record_homing(task: Task, generation: Generation) -> RecordedTransitions:
    rng = np.random.default_rng(generation.seed)
    request = EvaluationRequest(task, 0, generation.seed, "window", target_returns=(None,), cohort_size=10)
    return record_decoder(lambda rows: Homing(rng), request, generation.transitions)


SIMULATOR = Simulator(LineEngine, recorders={"homing": _record_homing})
