from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dmray.datasets import Episodes, FileRules, Subtask, read_d4rl_hdf5, write_d4rl_hdf5
from dmray.datasets.subtask_rewards import reward_arrivals

DOOR = Subtask("door", (0,), (1.0,), 0.3)
LIGHT = Subtask("light", (1, 2), (1.0, 1.0), 0.3)
RULES = FileRules(observation_dim=3, action_dim=1, horizon=8, pay_once=(DOOR, LIGHT))


def observations(*done: str) -> np.ndarray:
    """One row for each word, with `d` where the door is open and `l` where the light is on."""
    return np.array([[float("d" in word), float("l" in word), float("l" in word)] for word in done], dtype=np.float32)


def read(
    path: Path, shown: np.ndarray, rewards: list[float], ends: tuple[int, ...], rules: FileRules = RULES
) -> Episodes:
    count = len(shown)
    write_d4rl_hdf5(
        path,
        {
            "observations": shown,
            "actions": np.zeros((count, 1), np.float32),
            "rewards": np.array(rewards, np.float32),
            "terminals": np.zeros(count, bool),
            "timeouts": np.isin(np.arange(count), ends),
        },
        {},
    )
    return read_d4rl_hdf5(path, rules)


def test_a_file_that_pays_for_being_there_is_paid_for_arriving(tmp_path: Path) -> None:
    shown = observations("", "", "d", "d", "dl", "dl")
    episodes = read(tmp_path / "a.hdf5", shown, [0, 1, 1, 2, 2, 2], ends=(5,))
    assert episodes.rewards.tolist() == [0, 1, 0, 1, 0, 0]
    assert episodes.returns_to_go().tolist() == [2, 2, 1, 1, 0, 0]
    assert len(episodes.notes) == 1
    assert "paid once" in episodes.notes[0]


def test_a_file_that_pays_once_already_is_left_as_it_is(tmp_path: Path) -> None:
    shown = observations("", "", "d", "d", "dl", "dl")
    episodes = read(tmp_path / "a.hdf5", shown, [0, 1, 0, 1, 0, 0], ends=(5,))
    assert episodes.rewards.tolist() == [0, 1, 0, 1, 0, 0]
    assert episodes.notes == ()


@pytest.mark.parametrize(
    ("shown", "rewards", "paid"),
    [
        (("", "d", "", "d", "d"), [1, 0, 1, 1, 1], [1, 0, 0, 0, 0]),  # undone and done again: once
        (("", "d", "l", "dl", "dl"), [1, 1, 2, 2, 2], [1, 1, 0, 0, 0]),  # one for the other: both
        (("", "", "", "", "d"), [0, 0, 0, 1, 2], [0, 0, 0, 1, 1]),  # the last step arrives too
        (("", "dl", "dl", "dl", "dl"), [2, 2, 2, 2, 2], [2, 0, 0, 0, 0]),  # two at once
        (("d", "d", "d", "d", "d"), [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]),  # done from the start: evaluation pays it
    ],
)
def test_each_subtask_is_paid_once_an_episode(shown: tuple[str, ...], rewards: list[int], paid: list[int]) -> None:
    starts = np.array([0, 5])
    given = np.array(rewards, np.float32)
    assert reward_arrivals(observations(*shown), given, starts, (DOOR, LIGHT)).tolist() == paid


def test_where_evaluation_ends_with_the_first_reward_no_later_one_is_still_to_come(tmp_path: Path) -> None:
    rules = FileRules(observation_dim=3, action_dim=1, horizon=4, split_on_terminals=False, ends_at_first_reward=True)
    paid = [0, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0]
    episodes = read(tmp_path / "a.hdf5", observations(*[""] * 12), paid, ends=(3, 7, 11), rules=rules)
    assert episodes.rewards.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert episodes.returns_to_go().tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert len(episodes.notes) == 1
    once = read(tmp_path / "b.hdf5", observations(*[""] * 4), [0, 0, 1, 0], ends=(3,), rules=rules)
    assert (once.rewards.tolist(), once.notes) == ([0, 0, 1, 0], ())


def test_episodes_are_paid_each_by_itself() -> None:
    shown = observations("", "d", "d", "", "d", "d")
    rewards = np.array([1, 1, 1, 1, 1, 1], np.float32)
    assert reward_arrivals(shown, rewards, np.array([0, 3, 6]), (DOOR,)).tolist() == [1, 0, 0, 1, 0, 0]


def test_an_episode_of_one_step_is_paid_what_the_file_says_it_reached() -> None:
    rewards = np.array([1, 0], np.float32)
    assert reward_arrivals(observations("", ""), rewards, np.array([0, 1, 2]), (DOOR,)).tolist() == [1, 0]


def test_a_subtask_is_done_closer_than_its_distance() -> None:
    near, far = np.array([[0.71, 0, 0]]), np.array([[0.69, 0, 0]])
    assert DOOR.done(near).tolist() == [True]
    assert DOOR.done(far).tolist() == [False]
