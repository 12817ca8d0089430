from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from dmray.datasets import Episodes, FileRules, read_d4rl_hdf5, write_d4rl_hdf5
from dmray.errors import EngineError
from dmray.rollout import EvaluationRequest, RecordedTransitions, record_decoder, record_random, replay_errors
from dmray.rollout.recording import RandomActions
from dmray.tasks import TASKS, Task

HOPPER = replace(TASKS["hopper"], engine="gymnasium", horizon=60)
ANTMAZE = replace(TASKS["antmaze-umaze"], horizon=30)
UMAZE = replace(TASKS["maze2d-umaze"], horizon=40)


def as_episodes(recorded: RecordedTransitions, task: Task, folder: Path) -> Episodes:
    write_d4rl_hdf5(folder / "made.hdf5", recorded.as_arrays(), {})
    rules = FileRules(task.observation_dim, task.action_dim, task.horizon, split_on_terminals=task.splits_on_terminals)
    return read_d4rl_hdf5(folder / "made.hdf5", rules)


def test_a_recording_is_whole_episodes_of_d4rls_layout(tmp_path: Path) -> None:
    recorded = record_random(HOPPER, 200, seed=0)
    episodes = as_episodes(recorded, HOPPER, tmp_path)
    assert episodes.num_transitions == len(recorded.rewards) >= 200
    assert 3 < episodes.num_episodes < 40
    assert episodes.lengths.max() <= HOPPER.horizon
    ends = episodes.starts[1:] - 1
    assert (recorded.terminals | recorded.timeouts)[ends].all()
    assert (recorded.terminals | recorded.timeouts).sum() == episodes.num_episodes
    assert recorded.terminals.any(), "random hoppers fall"


def test_the_seed_decides_a_recording_bit_for_bit() -> None:
    one, again, other = (record_random(UMAZE, 100, seed) for seed in (0, 0, 1))
    for field in fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(again, field.name))
    assert (one.actions[:40] != other.actions[:40]).any()


def test_random_actions_fill_the_range() -> None:
    actions = record_random(UMAZE, 1000, seed=0).actions
    assert (actions.min(), actions.max()) == (pytest.approx(-1, abs=0.01), pytest.approx(1, abs=0.01))
    assert actions.std() == pytest.approx(np.sqrt(1 / 3), rel=0.05)


@pytest.mark.parametrize("task", [HOPPER, ANTMAZE, UMAZE], ids=lambda task: task.family)
def test_a_recording_replays_in_its_simulator(task: Task, tmp_path: Path) -> None:
    episodes = as_episodes(record_random(task, 100, seed=0), task, tmp_path)
    errors = replay_errors(task, episodes, steps=10)
    assert errors.shape[1] == 10
    assert np.median(errors.max(axis=1)) < 1e-3


def test_another_tasks_actions_do_not_replay(tmp_path: Path) -> None:
    recorded = record_random(HOPPER, 100, seed=0)
    strange = replace(recorded, actions=-recorded.actions)
    assert np.median(replay_errors(HOPPER, as_episodes(strange, HOPPER, tmp_path), steps=10)[:, -1]) > 1e-2


def test_what_cannot_be_replayed_is_said(tmp_path: Path) -> None:
    episodes = as_episodes(record_random(UMAZE, 40, seed=0), UMAZE, tmp_path)
    with pytest.raises(EngineError, match="no episode is longer than 100 steps"):
        replay_errors(UMAZE, episodes, steps=100)


def test_an_antmaze_recording_splits_at_its_goals_too() -> None:
    """Terminals do not split antmaze files, so an episode that reached its goal needs a timeout."""
    recorded = record_random(ANTMAZE, 60, seed=0)
    assert recorded.timeouts.sum() == 2
    assert not recorded.terminals.any()
    assert not ANTMAZE.splits_on_terminals


def test_a_decoder_is_recorded_episode_by_episode() -> None:
    request = EvaluationRequest(UMAZE, episodes=0, seed=3, decode="window", target_returns=(None,), cohort_size=2)
    seeds: list[int] = []

    def behaviour(rows: int) -> RandomActions:
        seeds.append(rows)
        return RandomActions(UMAZE, [np.random.default_rng(row) for row in range(rows)])

    recorded = record_decoder(behaviour, request, 5 * UMAZE.horizon - 1)
    assert seeds == [2, 2, 1]
    assert len(recorded.rewards) == 5 * UMAZE.horizon
    assert np.flatnonzero(recorded.timeouts).tolist() == [39, 79, 119, 159, 199]
    np.testing.assert_array_equal(recorded.actions[:40], recorded.actions[80:120])  # both cohorts' first rows
