"""Differences against scipy's tests, and against planted effects: what is there is found, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from dmray.reporting.compared import Candidate, compare
from dmray.reporting.differences import LEVEL, POWER, Difference, SeedScores, difference, holm

REPETITIONS = 900


def by_seed(scores: np.ndarray, first_seed: int = 0) -> SeedScores:
    return {first_seed + place: float(score) for place, score in enumerate(scores)}


def drawn(rng: np.random.Generator, effect: float, seeds: int, data_sets: int, paired: bool) -> Difference:
    """The first method's true mean is `effect` higher. A paired seed shifts both methods alike."""
    first, second = [], []
    for place in range(data_sets):
        shared = rng.normal(50 * place, 8.0 if paired else 0.0, seeds)
        first.append(by_seed(shared + effect + rng.normal(0, 3, seeds)))
        second.append(by_seed(shared + rng.normal(0, 3, seeds), 0 if paired else 100))
    return difference(first, second)


def test_one_data_set_is_scipys_paired_test() -> None:
    ours, theirs = np.array([50.0, 60.0, 61.0, 40.0]), np.array([45.0, 52.0, 60.0, 41.0])
    found, scipys = difference([by_seed(ours)], [by_seed(theirs)]), ttest_rel(ours, theirs)
    limits = scipys.confidence_interval()
    assert (found.paired, found.seeds_text) == (True, "4 paired seeds")
    assert found.value == pytest.approx((ours - theirs).mean())
    assert found.p_value == pytest.approx(scipys.pvalue)
    assert found.interval == pytest.approx((limits.low, limits.high))


def test_other_seeds_are_scipys_welch_test() -> None:
    ours, theirs = np.array([50.0, 60.0, 61.0]), np.array([45.0, 52.0, 60.0, 20.0])
    found, scipys = difference([by_seed(ours)], [by_seed(theirs, 10)]), ttest_ind(ours, theirs, equal_var=False)
    limits = scipys.confidence_interval()
    assert (found.paired, found.seeds_text) == (False, "3 and 4 seeds")
    assert found.p_value == pytest.approx(scipys.pvalue)
    assert found.interval == pytest.approx((limits.low, limits.high))


def test_seeds_are_paired_only_if_all_are_so_that_the_difference_is_that_of_the_tables_means() -> None:
    """In a sweep that still runs the first method has 5 seeds, which are lower, and the second 2."""
    first, second = {0: 50.0, 1: 60.0, 2: 10.0, 3: 10.0, 4: 12.0}, {0: 40.0, 1: 50.3}
    found = difference([first], [second])
    assert (found.paired, found.seeds, found.value) == (False, (5, 2), pytest.approx(28.4 - 45.15))
    (compared,) = compare([Candidate("dm", "dm", {}, {}, (first,)), Candidate("dt", "dt", {}, {}, (second,))])
    assert compared.lead().startswith("dt is ahead of dm by 16.8 ")


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("seeds", "data_sets"), [(3, 1), (5, 1), (3, 4)])
def test_a_planted_effect_lies_in_its_interval_as_often_as_promised(seeds: int, data_sets: int, paired: bool) -> None:
    rng = np.random.default_rng(seeds + 10 * data_sets)
    inside = 0
    for _ in range(REPETITIONS // 3):
        low, high = drawn(rng, 7.0, seeds, data_sets, paired).interval or (0.0, 0.0)
        inside += low <= 7.0 <= high
    assert inside / (REPETITIONS // 3) == pytest.approx(1 - LEVEL, abs=0.035)  # Welch's interval is a little wide


@pytest.mark.parametrize("paired", [True, False])
def test_without_an_effect_none_is_found_more_often_than_promised(paired: bool) -> None:
    rng = np.random.default_rng(1)
    found = sum((drawn(rng, 0.0, 4, 1, paired).p_value or 0.0) < LEVEL for _ in range(REPETITIONS))
    assert found / REPETITIONS == pytest.approx(LEVEL, abs=0.02)


def test_without_an_effect_a_table_of_many_methods_has_a_finding_as_rarely_as_one_comparison() -> None:
    """Of six methods that are equal; without Holm's correction a third of the tables would have a finding."""
    rng = np.random.default_rng(2)
    tables = 200
    with_finding, without_correction = 0, 0
    for _ in range(tables):
        methods = ("dt", "dm", "dm+r", "hdt", "hdm", "bc")
        scores = {name: rng.normal(50, 5, 5) for name in methods}
        compared = compare([Candidate(name, name, {}, {}, (by_seed(each),)) for name, each in scores.items()])
        with_finding += any(each.settled for each in compared)
        without_correction += any((each.difference.p_value or 1.0) < LEVEL for each in compared)
    assert with_finding / tables < 2 * LEVEL < without_correction / tables


@pytest.mark.parametrize("paired", [True, False])
def test_a_detectable_difference_is_found_with_the_promised_probability(paired: bool) -> None:
    """The deviations are known here, so the detectable difference is that of the true standard error."""
    error = 3 * (2 / 5) ** 0.5
    smallest = Difference(0.0, paired, (5,) if paired else (5, 5), error, 4.0 if paired else 8.0).detectable()
    assert smallest is not None
    rng = np.random.default_rng(3)
    found = sum((drawn(rng, smallest, 5, 1, paired).p_value or 1.0) < LEVEL for _ in range(REPETITIONS))
    assert found / REPETITIONS == pytest.approx(POWER, abs=0.03)


def test_as_many_more_seeds_as_said_find_the_difference() -> None:
    spread = 18**0.5  # of a difference of two scores with a deviation of 3
    measured = difference([by_seed(np.array([3.0 - spread, 3.0, 3.0 + spread]))], [by_seed(np.zeros(3))])
    more = measured.more_seeds()
    assert more is not None
    rng = np.random.default_rng(4)
    found = sum((drawn(rng, 3.0, 3 + more, 1, True).p_value or 1.0) < LEVEL for _ in range(REPETITIONS))
    assert POWER - 0.03 < found / REPETITIONS < POWER + 0.06


def with_deviation(mean: float, deviation: float, seeds: int, first_seed: int = 0) -> SeedScores:
    line = np.linspace(-1.0, 1.0, seeds)
    return by_seed(mean + deviation * line / line.std(ddof=1), first_seed)


def test_more_seeds_are_as_many_of_each_method_also_if_one_has_more_already() -> None:
    def measured(more: int) -> Difference:
        return difference([with_deviation(50.0, 1.4, 2 + more)], [with_deviation(44.0, 6.3, 5 + more, 100)])

    more = measured(0).more_seeds()
    assert more is not None
    assert (measured(more).detectable() or 0.0) <= 6.0 < (measured(more - 1).detectable() or 0.0)


def test_more_seeds_than_anybody_has_are_no_number() -> None:
    assert difference([by_seed(np.array([-8.0, 0.2, 8.4]))], [by_seed(np.zeros(3))]).more_seeds() is None
    assert Difference(0.2, True, (1,)).more_seeds() is None


def test_holms_correction_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_outlook_says_what_these_seeds_can_show_and_how_many_more_would_do() -> None:
    scores = {"dm": [60.0, 66.0, 57.0], "dt": [55.0, 52.0, 58.0]}
    (found,) = compare([Candidate(name, name, {}, {}, (by_seed(np.array(each)),)) for name, each in scores.items()])
    assert found.conclusion == "not settled"
    assert found.outlook() == (
        "dm and dt: with 3 paired seeds a t test at 5 % detects a true difference of 24.6 points with a power of 80 %. "
        "12 more seeds of each would detect the measured one, if it is true and the spread stays."
    )
