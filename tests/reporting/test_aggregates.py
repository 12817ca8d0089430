"""Measures with answers known by hand, or by scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from dmray.reporting.aggregates import (
    Estimate,
    estimate,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

ONE = [np.array([0.0, 10.0, 20.0, 90.0])]
TWO = [np.array([0.0, 50.0]), np.array([100.0, 130.0])]


def interval_of(found: Estimate) -> tuple[float, float]:
    assert found.interval is not None
    return found.interval


@pytest.mark.parametrize(
    ("statistic", "scores", "answer"),
    [
        (mean, ONE, 30.0),
        (median, ONE, 15.0),
        (iqm, ONE, 15.0),  # of 0, 10, 20, 90 the middle two
        (iqm, TWO, 75.0),
        (optimality_gap, ONE, 70.0),
        (optimality_gap, TWO, 37.5),  # nothing for what lies above 100
    ],
)
def test_statistics(statistic, scores, answer) -> None:  # type: ignore[no-untyped-def]
    found = estimate(scores, statistic)
    assert found.value == pytest.approx(answer)
    low, high = interval_of(found)
    assert low <= answer <= high
    assert found.runs == 4


def test_intervals_are_those_of_scipys_bootstrap_where_there_is_one_data_set() -> None:
    runs = np.random.default_rng(0).normal(50, 20, 40)
    theirs = bootstrap((runs,), np.mean, method="percentile", n_resamples=9999, random_state=1).confidence_interval
    found = estimate([runs], mean)
    assert found.interval == pytest.approx((theirs.low, theirs.high), abs=0.5)


def test_seeds_are_drawn_within_their_data_set() -> None:
    """Of two data sets without any spread the mean is certain; a bootstrap over all runs together would doubt it."""
    found = estimate([np.array([0.0, 0.0, 0.0]), np.array([100.0, 100.0, 100.0])], mean)
    assert (found.value, found.interval) == (50.0, (50.0, 50.0))


def test_a_single_seed_has_no_interval() -> None:
    """A bootstrap of one number would always draw it: certainty where nothing is known."""
    assert estimate([np.array([1.0, 2.0]), np.array([5.0])], mean).interval is None
    assert probability_of_improvement([np.array([1.0, 2.0])], [np.array([0.0])]).interval is None


@pytest.mark.parametrize(
    ("first", "second", "answer"),
    [
        ([np.array([3.0, 4.0])], [np.array([1.0, 2.0])], 1.0),
        ([np.array([1.0, 3.0])], [np.array([2.0, 2.0])], 0.5),
        ([np.array([2.0])], [np.array([2.0])], 0.5),  # a tie
        (
            [np.array([3.0, 4.0]), np.array([0.0])],
            [np.array([1.0, 2.0]), np.array([9.0])],
            0.5,
        ),  # data sets count alike
        ([np.array([1.0, 5.0])], [np.array([2.0, 3.0, 6.0, 0.0])], 0.5),  # 1 beats 0; 5 beats 2, 3, 0
    ],
)
def test_probability_of_improvement(first, second, answer) -> None:  # type: ignore[no-untyped-def]
    found = probability_of_improvement(first, second)
    assert found.value == pytest.approx(answer)
    if found.interval is not None:
        low, high = found.interval
        assert low <= found.value <= high
    assert probability_of_improvement(second, first).value == pytest.approx(1 - answer)


def test_a_profile_is_the_share_of_runs_above_each_threshold() -> None:
    share, low, high = performance_profile(TWO, np.array([-1.0, 0.0, 60.0, 100.0, 200.0]))
    assert share.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert (low <= share).all()
    assert (share <= high).all()


def test_the_same_scores_give_the_same_interval() -> None:
    assert estimate(TWO, iqm) == estimate(TWO, iqm)
