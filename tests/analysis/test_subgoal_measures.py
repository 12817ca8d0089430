"""Distances, reach rates, counts and holding times of planted subgoals are known numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmray.analysis.subgoal_figures import principal_components
from dmray.analysis.subgoal_measures import (
    LABEL,
    LATER,
    PREDICTED,
    PREVIOUS,
    REFERENCES,
    Points,
    ScaledStates,
    count_different,
    default_radius,
    distance,
    draw_points,
    fed_back_states,
    holding_times,
    measure,
    nearest_visited,
    predicted_states,
    reach_curve,
    reference_subgoals,
)
from dmray.datasets import Episodes, Windows, subgoal_rows
from dmray.errors import DatasetError
from dmray.fields import Field, Token
from dmray.policies import SequencePolicy, make_decoder
from tests.analysis.examples import walk
from tests.policies.windows import policy_with


def points_of(episodes: Episodes) -> Points:
    """All timesteps but the last of each episode, a stretch an episode."""
    return draw_points(episodes, episodes.num_episodes, int(episodes.lengths.max()), seed=0)


def test_points_are_consecutive_timesteps_of_one_episode_without_its_last() -> None:
    episodes = walk(30, 1, 8, 50)
    points = draw_points(episodes, stretches=3, length=10, seed=1)
    assert sorted(set(points.episode.tolist())) == [0, 2, 3], "each once, and none of the episode of one timestep"
    for number in range(3):
        rows, ends = points.rows[points.stretch == number], points.ends[points.stretch == number]
        assert len(rows) == min(10, 7 if ends[0] == 39 else 10)
        assert (np.diff(rows) == 1).all()
        assert (rows < ends - 1).all()
    assert len(set(draw_points(episodes, 5, 10, 0).stretch.tolist())) == 5, "episodes come again if there are too few"
    with pytest.raises(DatasetError, match="no episode of the data set has two timesteps"):
        draw_points(walk(1, 1), 3, 10, 0)


def test_the_distance_is_the_root_mean_square_over_dimensions() -> None:
    assert distance(np.array([[3.0, 0.0], [1.0, 1.0]]), np.array([0.0, 4.0])).tolist() == [
        pytest.approx(12.5**0.5),
        pytest.approx(5**0.5),
    ]


def test_a_subgoal_ahead_is_reached_in_time_and_one_behind_never() -> None:
    """On the line 0, 1, ..., 9: distances to the nearest of the next three states, worked out by hand."""
    episodes, at = walk(10), np.array([2, 2, 2, 2, 8])
    points = Points(at, np.zeros(5, np.int64), np.zeros(5, np.int64), np.zeros(5, np.int64), np.full(5, 10))
    subgoals = np.repeat(np.array([[5.0], [7.0], [2.0], [0.0], [9.0]]), 3, axis=1)
    visited = nearest_visited(subgoals, episodes.observations, points, within=3)
    assert visited.tolist() == [0.0, 2.0, 1.0, 3.0, 0.0]
    assert reach_curve(visited, np.array([0.0, 1.0, 2.5, 3.0])).tolist() == [0.4, 0.6, 0.8, 1.0]


def test_a_subgoal_is_held_until_it_moves_by_more_than_the_radius() -> None:
    path = np.array([0.0, 0.4, 0.5, 1.1, 1.2, 5.0, 9.0, 9.0, 9.4])[:, None]
    stretch = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    assert holding_times(path, stretch, radius=1.0).tolist() == [3, 2, 1, 3]
    assert holding_times(path, stretch, radius=0.05).sum() == len(path)
    assert count_different(path, radius=1.0) == 4, "0, 1.1, 5 and 9"
    assert count_different(path, radius=0.0) == 8, "two are equal"
    assert count_different(path, radius=100.0) == 1


def test_the_radius_is_half_of_how_far_states_move_and_is_never_zero() -> None:
    assert default_radius(walk(100).observations, points_of(walk(100)), within=6) == 3.0
    with pytest.raises(DatasetError, match=r"do not change within 6 timesteps.*give one with --radius"):
        default_radius(walk(100, step=0.0).observations, points_of(walk(100)), within=6)


def test_a_planted_prediction_has_the_numbers_of_what_it_is() -> None:
    """The label: distance 0. The present state, the mean, a later state: exactly the baselines' numbers."""
    episodes, draw = walk(40, 25), np.random.default_rng(0)
    noisy = Episodes(
        episodes.observations + draw.normal(size=(65, 3)).astype(np.float32),
        episodes.actions,
        episodes.rewards,
        episodes.starts,
    )
    mean, std = noisy.observations.mean(axis=0), noisy.observations.std(axis=0)
    states, labels, points = ScaledStates(noisy.observations, mean, std), subgoal_rows(noisy), points_of(noisy)

    references = reference_subgoals(states, labels, points, seed=0)

    def measured(predicted: np.ndarray) -> dict[str, tuple[float, ...]]:
        subgoals = {PREDICTED: predicted, **references}
        visited = {name: nearest_visited(each, states, points, 5) for name, each in subgoals.items()}
        return {name: measure(each, subgoals[LABEL], visited[name], points, 0.4) for name, each in subgoals.items()}

    nothing = measured(np.full((len(points), 3), 99.0))
    assert nothing[PREDICTED][2] == 0.0, "a state that is never visited is never reached"
    for source in REFERENCES:
        found = measured(references[source])
        assert found[PREDICTED] == found[source] == nothing[source]
        assert (found[PREDICTED][0] == 0.0) == (source == LABEL)
    later = references[LATER]
    assert all(
        (np.abs(states[np.arange(row + 1, end)] - later[place]).max(axis=1) == 0).any()
        for place, (row, end) in enumerate(zip(points.rows, points.ends, strict=True))
    )


@pytest.mark.parametrize("target", ["state", "difference"])
def test_predictions_are_those_of_the_window_that_ends_at_the_point(target: str) -> None:
    policy = policy_with("hdm", "linear", target)  # type: ignore[arg-type]
    episodes = walk(12, 9)
    points = points_of(episodes)
    found = predicted_states(policy, episodes, points)
    labels, context = subgoal_rows(episodes), policy.recipe.model.context_length
    for place in (0, 1, 5, len(points) - 1):
        row, first_row = points.rows[place], episodes.starts[points.episode[place]]
        rows = np.arange(max(first_row, row - context + 1), row + 1)
        np.testing.assert_allclose(found[place], one_window(policy, episodes, labels, rows, first_row), atol=1e-5)


def one_window(
    policy: SequencePolicy, episodes: Episodes, labels: np.ndarray, rows: np.ndarray, first_row: int
) -> np.ndarray:
    def values(token: Token) -> torch.Tensor:
        source = {Field.STATE: rows, Field.SUBGOAL: labels[rows], Field.ACTION: rows}
        lagged = {Field.STATE: rows - 1, Field.SUBGOAL: labels[rows - 1], Field.ACTION: rows - 1}
        array = episodes.actions if token.field is Field.ACTION else episodes.observations
        taken = array[(lagged if token.lag else source)[token.field]].copy()
        if token.lag:
            taken[rows == first_row] = 0.0
        return torch.from_numpy(taken)[None]

    windows = Windows(
        {token: values(token) for token in policy.tokens},
        torch.from_numpy(rows - first_row)[None],
        torch.ones(1, len(rows), dtype=torch.bool),
    )
    with torch.no_grad():
        found: np.ndarray = policy.predict_subgoals(windows)[0, -1].numpy()
    return found


def test_a_policy_whose_network_gives_a_constant_predicts_that_state() -> None:
    """Zero weights: with a linear head the prediction is the mean state, or the mean difference from the present."""
    episodes = walk(12, 9)
    points = points_of(episodes)
    for target in ("state", "difference"):
        policy = policy_with("hdm", "linear", target)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in policy.stages[0].get_submodule("head").parameters():
                parameter.zero_()
        found = predicted_states(policy, episodes, points)
        expected = policy.state_mean.numpy()
        if target == "difference":
            expected = episodes.observations[points.rows] + policy.difference_mean.numpy()
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-5)


def test_the_previous_label_is_what_the_network_sees_of_the_labels() -> None:
    """A label that stays is copied with distance 0, so only the timesteps at which labels change tell."""
    episodes = walk(6)
    mean, std = episodes.observations.mean(axis=0), episodes.observations.std(axis=0)
    states, labels = ScaledStates(episodes.observations, mean, std), subgoal_rows(episodes)
    assert labels.tolist() == [5, 5, 5, 5, 5, 0]
    found = reference_subgoals(states, labels, points_of(episodes), seed=0)
    np.testing.assert_allclose(found[PREVIOUS][1:], found[LABEL][1:])
    np.testing.assert_allclose(found[PREVIOUS][0] * std + mean, 0.0, atol=1e-6)


@pytest.mark.parametrize("method", ["hdt", "hdm"])
@pytest.mark.parametrize("decode", ["window", "recurrent"])
def test_fed_back_predictions_are_those_of_acting_alone_in_each_stretch(method: str, decode: str) -> None:
    """Stretches of several lengths and starts, against a decoder for each stretch."""
    policy, episodes = policy_with(method, "linear", "difference"), walk(15, 7, 12)
    points = draw_points(episodes, stretches=4, length=5, seed=2)
    assert len(set(np.bincount(points.stretch).tolist()) | set((points.rows - points.starts).tolist())) > 3
    found = fed_back_states(policy, decode, episodes, points)
    for number in range(4):
        places = np.flatnonzero(points.stretch == number)
        start = points.starts[places[0]]
        first = max(start, points.rows[places[0]] - policy.recipe.model.context_length)
        decoder = make_decoder(policy, decode, 1, int(first - start))
        for row in range(first, points.rows[places[-1]] + 1):
            decoder.decide(episodes.observations[[row]], np.zeros(1), episodes.actions[[row]])
            if row >= points.rows[places[0]]:
                place = places[row - points.rows[places[0]]]
                np.testing.assert_allclose(found[place], np.asarray(decoder.subgoals())[0], atol=1e-5)


def test_the_leading_components_are_the_directions_in_which_states_differ_most() -> None:
    draw = np.random.default_rng(0)
    states = draw.normal(size=(500, 4)) * np.array([0.1, 5.0, 0.2, 2.0]) + 7.0
    components, shares = principal_components(states)
    assert np.abs(components).argmax(axis=1).tolist() == [1, 3]
    np.testing.assert_allclose(shares, [25 / 29.05, 4 / 29.05], atol=0.03)
