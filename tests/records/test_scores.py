"""The last and the best score of a trial, one by one and as arrays, and their spread over seeds."""

from __future__ import annotations

import pytest

from dmray.records import Score, ScoreSeries, Spread
from dmray.records.scores import best_score, last_score
from tests.mlflow_mirror.examples import evaluated

QUICK = evaluated(40, 60, 10).model_copy(update={"quick": True})


@pytest.mark.parametrize(
    "evaluations",
    [
        [],
        [evaluated(20, 50), evaluated(40, 60)],
        [evaluated(20, 90), evaluated(40, 30), evaluated(60, 90)],
        [evaluated(20, 60), QUICK],
        [evaluated(40, 30), evaluated(20, 70)],
    ],
)
def test_a_series_has_the_last_and_the_best_of_its_scores(evaluations: list[object]) -> None:
    scores = [Score.of(evaluation) for evaluation in evaluations]  # type: ignore[arg-type]
    series = ScoreSeries.of(scores)
    assert list(series) == sorted(scores)
    assert (series.last, series.best) == (last_score(scores), best_score(scores))


def test_a_score_has_every_metric_of_its_evaluation_by_name() -> None:
    assert Score.of(evaluated(20, 50, 40)).values == {
        "normalized_score": 50.0,
        "return_mean": 500.0,
        "return_std": 10.0,
        "length_mean": 150.0,
        "evaluation_s": 2.0,
    }


def test_the_mean_of_the_last_ten() -> None:
    series = ScoreSeries.of(Score.of(evaluated(20 * n, n)) for n in range(1, 13))
    assert series.mean_of_last(10) == pytest.approx(sum(range(3, 13)) / 10)
    assert ScoreSeries.of([]).mean_of_last(10) is None


def test_last_and_best_do_not_depend_on_the_order_of_records() -> None:
    scores = [Score.of(evaluated(step, score)) for step, score in ((40, 70), (60, 50), (20, 70))]
    assert (last_score(scores), best_score(scores)) == (scores[1], scores[2])
    assert last_score([]) is None


def test_the_spread_is_the_sample_deviation_and_one_seed_has_none() -> None:
    spread = Spread.of([1.0, 2.0, 6.0])
    assert spread is not None
    assert (spread.mean, spread.n) == (3.0, 3)
    assert spread.std == pytest.approx(7**0.5)
    assert Spread.of([4.0]) == Spread(4.0, None, 1)
    assert Spread.of([]) is None
