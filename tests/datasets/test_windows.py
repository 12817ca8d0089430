from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmray.datasets import Episodes, WindowSampler, subgoal_rows
from dmray.fields import Field, Token
from tests.datasets.examples import episodes_of

TOKENS = [Token(field, lag) for field in Field for lag in (0, 1, 2)]


def slow_value(episodes: Episodes, episode: int, step: int, token: Token) -> np.ndarray:
    """A token's value by its definition."""
    first, last = episodes.starts[episode], episodes.starts[episode + 1]
    row = first + step - token.lag
    if row < first:
        return np.zeros({Field.RETURN_TO_GO: 1, Field.ACTION: 2}.get(token.field, 3), np.float32)
    match token.field:
        case Field.RETURN_TO_GO:
            return np.array([episodes.rewards[row:last].astype(np.float64).sum()], np.float32)
        case Field.ACTION:
            return episodes.actions[row]
        case Field.STATE:
            return episodes.observations[row]
        case Field.SUBGOAL:
            return episodes.observations[subgoal_rows(episodes)[row]]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    context=st.integers(1, 6),
    weighting=st.sampled_from(["uniform", "length"]),
    seed=st.integers(0, 1000),
)
def test_every_window_is_what_the_definition_says(lengths: list[int], context: int, weighting: str, seed: int) -> None:
    episodes = episodes_of(lengths, seed)
    sampler = WindowSampler(
        episodes,
        TOKENS,
        context_length=context,
        batch_size=6,
        episode_weighting=weighting,  # type: ignore[arg-type]
    )
    windows = sampler.sample(torch.Generator().manual_seed(seed))
    for row in range(6):
        real = int(windows.valid[row].sum())
        assert windows.valid[row].tolist() == [True] * real + [False] * (context - real), "padding is on the right"
        episode = _episode_of(episodes, windows.tokens[Token(Field.STATE)][row, 0].numpy())
        first = int(windows.timesteps[row, 0])
        assert real == context or first == 0, "a short window starts where the episode does"
        for place in range(real):
            assert windows.timesteps[row, place] == first + place
            assert first + place < lengths[episode], "a window stays in its episode"
            for token in TOKENS:
                expected = slow_value(episodes, episode, first + place, token)
                np.testing.assert_array_equal(windows.tokens[token][row, place].numpy(), expected)
        for token in TOKENS:
            assert not windows.tokens[token][row, real:].any()


@pytest.mark.parametrize("weighting", ["uniform", "length"])
def test_episodes_and_last_steps_are_drawn_as_said(weighting: str) -> None:
    lengths, draws = [2, 6], 20_000
    sampler = WindowSampler(
        episodes_of(lengths, 0),
        [Token(Field.STATE)],
        context_length=10,
        batch_size=draws,
        episode_weighting=weighting,  # type: ignore[arg-type]
    )
    windows = sampler.sample(torch.Generator().manual_seed(0))
    episode = (windows.tokens[Token(Field.STATE)][:, 0, 0] > 3).long()  # the first observation starts with 1
    counts = Counter(zip(episode.tolist(), windows.valid.sum(dim=1).tolist(), strict=True))
    chance = {"uniform": [1 / 2, 1 / 2], "length": [2 / 8, 6 / 8]}[weighting]
    for which, length in enumerate(lengths):
        for end in range(1, length + 1):
            expected = chance[which] / length
            deviation = (expected * (1 - expected) / draws) ** 0.5
            assert counts[which, end] / draws == pytest.approx(expected, abs=5 * deviation)


def test_batches_follow_from_the_generator_alone() -> None:
    sampler = WindowSampler(episodes_of([5, 7], 0), TOKENS, context_length=3, batch_size=4)
    generator = torch.Generator().manual_seed(1)
    first, second = sampler.sample(generator), sampler.sample(generator)
    again = sampler.sample(torch.Generator().manual_seed(1))
    assert all(torch.equal(first.tokens[token], again.tokens[token]) for token in TOKENS)
    assert not torch.equal(first.tokens[Token(Field.STATE)], second.tokens[Token(Field.STATE)])


def _episode_of(episodes: Episodes, observation: np.ndarray) -> int:
    row = int(np.flatnonzero((episodes.observations == observation).all(axis=1))[0])
    return int(np.searchsorted(episodes.starts, row, side="right")) - 1
