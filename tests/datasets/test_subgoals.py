from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmray.datasets import subgoal_rows
from tests.datasets.examples import episodes_of

integers = st.lists(st.integers(-3, 3), min_size=1, max_size=25)


def definition(rewards: list[float]) -> list[int]:
    """The authors' rule, word for word, in exact arithmetic: which state is each step's subgoal."""
    count, subgoal, labels = len(rewards), 0, []
    exact = [Fraction(reward) for reward in rewards]
    for i in range(count):
        if i == count - 1:
            subgoal = 0
        elif i == subgoal:
            means = [sum(exact[i:j], Fraction(0)) / (j - i) for j in range(i + 1, count)]
            subgoal = i + 1 + means.index(max(means))
        labels.append(subgoal)
    return labels


@given(integers)
def test_labels_are_the_definitions(rewards: list[int]) -> None:
    assert subgoal_rows(episodes_of([len(rewards)], rewards=rewards)).tolist() == definition(rewards)


@given(st.lists(integers, min_size=2, max_size=5))
def test_an_episodes_labels_do_not_depend_on_its_neighbours(parts: list[list[int]]) -> None:
    lengths = [len(part) for part in parts]
    together = subgoal_rows(episodes_of(lengths, rewards=[reward for part in parts for reward in part]))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for part, first in zip(parts, starts, strict=False):
        assert (together[first : first + len(part)] - first).tolist() == definition(part)


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=25))
def test_with_any_rewards_the_label_reaches_the_highest_mean(rewards: list[float]) -> None:
    labels = subgoal_rows(episodes_of([len(rewards)], rewards=rewards)).tolist()
    chosen_at = [0] + [i for i in range(1, len(rewards) - 1) if labels[i] != labels[i - 1]]
    for i in chosen_at:
        means = [float(np.mean(np.float64(rewards[i:j]))) for j in range(i + 1, len(rewards))]
        assert means[labels[i] - i - 1] == pytest.approx(max(means), rel=1e-9, abs=1e-9)


def test_of_equal_means_the_first_is_taken_and_kept_until_it_is_reached() -> None:
    assert subgoal_rows(episodes_of([5], rewards=[1, 1, 1, 1, 1])).tolist() == [1, 2, 3, 4, 0]
    assert subgoal_rows(episodes_of([5], rewards=[0, 0, 1, 0, 0])).tolist() == [3, 3, 3, 4, 0]


def test_a_long_episode_takes_no_quadratic_time() -> None:
    # A million steps: a quadratic search would take hours, this fails by the test run's own limit.
    rewards = np.random.default_rng(0).normal(size=1_000_000).tolist()
    assert len(subgoal_rows(episodes_of([1_000_000], rewards=rewards))) == 1_000_000
