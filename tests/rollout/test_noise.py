"""Noise in rollouts: its size, what it reaches, and that an episode's draws follow from its seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from dmray.rollout import Deviations, EvaluationRequest, Noise, Step, cohorts, episode_seed, roll_out
from dmray.rollout.noise import NoiseSource
from dmray.tasks import TASKS

TASK = replace(TASKS["maze2d-umaze"], horizon=6)
DEVIATIONS = Deviations(actions=(0.5, 2.0), observations=(1.0, 3.0, 1e-6, 1.0))


def noise(action: float = 0.1, observation: float = 0.2, zero_dims: int = 0) -> Noise:
    made = Noise.of(action, observation, DEVIATIONS, zero_dims)
    assert made is not None
    return made


class RecordingEngine:
    """Episode e lasts 2 + e % 3 steps. Observations are zeros; keeps the actions that it gets, by seed."""

    def __init__(self) -> None:
        self.got: dict[int, list[list[float]]] = {}

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        self.seeds, self.elapsed = list(seeds), np.zeros(len(seeds), np.int64)
        return np.zeros((len(seeds), 4), np.float32)

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        for row, action in zip(live.tolist(), actions.tolist(), strict=True):
            self.got.setdefault(self.seeds[row], []).append(action)
        self.elapsed[live] += 1
        ended = self.elapsed[live] == np.array([2 + self.seeds[row] % 3 for row in live])
        return Step(np.zeros((len(live), 4), np.float32), np.ones(len(live)), ended, np.zeros_like(ended))

    def close(self) -> None: ...


class RecordingDecoder:
    """Decides the limit in each dimension; keeps what it sees, by seed."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = np.array(seeds)
        self.saw: dict[int, list[list[float]]] = {}
        self.returns_to_go: list[float] = []

    def decide(self, observations: np.ndarray, returns_to_go: np.ndarray) -> np.ndarray:
        for seed, observation in zip(self.seeds.tolist(), observations.tolist(), strict=True):
            self.saw.setdefault(seed, []).append(observation)
        self.returns_to_go.append(float(returns_to_go[0]))
        return np.full((len(observations), 2), TASK.action_limit, np.float32)

    def keep(self, rows: np.ndarray) -> None:
        self.seeds = self.seeds[rows]


def rolled_out(made: Noise | None, cohort_size: int = 5) -> tuple[dict[int, object], dict[int, object], list[float]]:
    """What the decoder saw and what the engine got, by the episode's seed; and the first returns-to-go."""
    asked = EvaluationRequest(TASK, 5, 3, "window", (10.0,), cohort_size, made)
    saw: dict[int, object] = {}
    got: dict[int, object] = {}
    for cohort in cohorts(asked):
        engine, decoder = RecordingEngine(), RecordingDecoder([episode_seed(3, row.index) for row in cohort.rows])
        roll_out(decoder, engine, asked, cohort)
        saw |= decoder.saw
        got |= engine.got
    return saw, got, decoder.returns_to_go


@pytest.mark.parametrize("cohort_size", [1, 2, 3])
def test_an_episodes_noise_does_not_depend_on_its_cohort(cohort_size: int) -> None:
    assert rolled_out(noise(), cohort_size)[:2] == rolled_out(noise())[:2]


def test_the_policy_sees_noise_the_simulator_gets_it_clipped_and_returns_to_go_have_none() -> None:
    saw, got, returns_to_go = rolled_out(noise())
    clean_saw, clean_got, clean_returns = rolled_out(None)
    assert set(saw) == set(clean_saw)
    assert all(saw[seed] != clean_saw[seed] for seed in saw)
    assert returns_to_go == clean_returns
    actions = np.concatenate([np.array(each) for each in got.values()])
    assert actions.max() == TASK.action_limit
    assert actions.min() < TASK.action_limit
    assert {action for each in clean_got.values() for step in each for action in step} == {TASK.action_limit}


def test_one_kind_of_noise_does_not_change_the_draws_of_the_other() -> None:
    assert rolled_out(noise(action=0.0))[0] == rolled_out(noise(action=0.5))[0]
    assert rolled_out(noise(observation=0.0))[1] == rolled_out(noise(observation=0.5))[1]
    assert rolled_out(noise(action=0.0))[1] == rolled_out(None)[1]


def test_noise_has_the_deviations_of_the_data_and_constant_or_appended_numbers_have_none() -> None:
    source = NoiseSource(noise(0.1, 0.2, zero_dims=1), range(4000), action_limit=100.0)
    seen, done = source.seen(np.zeros((4000, 4), np.float32)), source.done(np.zeros((4000, 2), np.float32))
    assert seen.std(0)[:2] == pytest.approx([0.2, 0.6], rel=0.05)
    assert (seen[:, 2:] == 0).all()
    assert done.std(0) == pytest.approx([0.05, 0.2], rel=0.05)
    assert (seen.dtype, done.dtype) == (np.float32, np.float32)
    again = source.seen(np.zeros((4000, 4), np.float32))
    assert not np.allclose(again, seen), "each timestep has its own"


def test_without_levels_there_is_no_noise() -> None:
    assert Noise.of(0.0, 0.0, DEVIATIONS, 0) is None
