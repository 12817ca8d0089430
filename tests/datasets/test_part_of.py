"""A part of a data set's episodes: which are kept, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest

from dmray.datasets import Episodes, Statistics, action_deviations, part_of
from dmray.errors import DatasetError


def made(lengths: list[int]) -> Episodes:
    """The observation of each row is the number of its episode and its own number."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = int(starts[-1])
    observations = np.stack([np.repeat(np.arange(len(lengths)), lengths), np.arange(rows)], axis=1)
    rng = np.random.default_rng(0)
    return Episodes(
        observations.astype(np.float32), rng.normal(size=(rows, 1)).astype(np.float32), np.ones(rows), starts
    )


def numbers(episodes: Episodes) -> list[int]:
    return [int(number) for number in episodes.observations[episodes.starts[:-1], 0]]


WHOLE = made([2 + place % 3 for place in range(40)])


def test_whole_episodes_are_kept_in_their_order_and_a_smaller_part_is_in_a_larger_one() -> None:
    half, tenth = part_of(WHOLE, 0.5, "data"), part_of(WHOLE, 0.1, "data")
    assert (half.num_episodes, tenth.num_episodes) == (20, 4)
    assert numbers(half) == sorted(numbers(half))
    assert set(numbers(tenth)) < set(numbers(half))
    for episode, number in enumerate(numbers(half)):
        rows = slice(half.starts[episode], half.starts[episode + 1])
        original = slice(WHOLE.starts[number], WHOLE.starts[number + 1])
        assert (half.observations[rows] == WHOLE.observations[original]).all()
        assert (half.actions[rows] == WHOLE.actions[original]).all()


def test_the_part_is_the_same_each_time_and_all_is_the_data_set_itself() -> None:
    assert part_of(WHOLE, 0.5, "data").fingerprint == part_of(WHOLE, 0.5, "data").fingerprint
    assert part_of(WHOLE, 1.0, "data") is WHOLE


def test_statistics_are_of_the_part_and_a_note_has_the_counts() -> None:
    part = part_of(WHOLE, 0.1, "data")
    assert Statistics.of(part).mean == pytest.approx(part.observations.mean(0))
    assert action_deviations(part) == pytest.approx(part.actions.std(0))
    assert part.notes == (
        f"fraction 0.1: 4 of 40 episodes are kept, {part.num_transitions} of 119 transitions; all statistics are "
        "those of the kept part",
    )


@pytest.mark.parametrize(
    ("lengths", "fraction", "message"),
    [
        ([2] * 20, 0.01, r"data: fraction 0\.01 of its 20 episodes is no episode; give at least 0\.05"),
        ([2] * 20, 0.99, r"data: fraction 0\.99 of its 20 episodes is all of them; leave it out"),
        ([2], 0.6, r"data: fraction 0\.6 of its 1 episodes is all of them; leave it out"),
        ([2], 0.3, r"data: fraction 0\.3 of its 1 episodes is no episode; leave it out"),
    ],
)
def test_a_fraction_that_cannot_take_effect_is_refused(lengths: list[int], fraction: float, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        part_of(made(lengths), fraction, "data")
