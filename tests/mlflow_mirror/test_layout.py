from __future__ import annotations

import re

import pytest

from dmray.mlflow_mirror.layout import NOTE, Point, note_with_tables, points_of, seed_group_curve, seed_group_points
from dmray.records.metrics import target_name
from dmray.records.records import TrainProgress
from dmray.records.scores import Score, Spread, best_score, last_score
from tests.mlflow_mirror.examples import T0, done, evaluated, trained


def values(points: list[Point]) -> dict[str, float]:
    return {point.key: point.value for point in points}


def test_a_point_is_at_the_records_step_and_time() -> None:
    points = points_of(trained(20), [])
    assert points
    for point in points:
        assert (point.step, point.time_ms) == (20, int((T0 + 20) * 1000))


def test_the_score_is_that_of_the_first_target_even_if_another_is_better() -> None:
    points = values(points_of(evaluated(20, 40, 90), []))
    assert points["eval/normalized_score"] == 40
    assert points["eval/return_mean"] == 400
    assert points["eval/target_3600/normalized_score"] == 40
    assert points["eval/target_1800/normalized_score"] == 90
    assert points["eval/step"] == 20


def test_a_method_without_targets_has_no_target_metrics() -> None:
    points = values(points_of(evaluated(20, 40, targets=[None]), []))
    assert points["eval/normalized_score"] == 40
    assert not any("target" in key for key in points)


def test_stages_are_told_apart_where_there_are_several() -> None:
    record = trained(20)
    assert "train/loss_action" not in values(points_of(record, []))
    two = TrainProgress(**{**record.model_dump(), "stage_losses": {"subgoal": 0.3, "action": 0.2}})
    assert values(points_of(two, []))["train/loss_subgoal"] == 0.3


def test_the_end_has_last_and_best() -> None:
    scores = [Score.of(evaluated(step, score, 0)) for step, score in ((20, 70), (40, 70), (60, 50))]
    points = values(points_of(done(60), scores))
    assert (points["final/normalized_score"], points["best/normalized_score"], points["best/step"]) == (50, 70, 20)
    assert points["time/train_s"] == 3.0


def test_last_and_best_do_not_depend_on_the_order_of_records() -> None:
    scores = [Score.of(evaluated(step, score, 0)) for step, score in ((40, 70), (60, 50), (20, 70))]
    assert (last_score(scores), best_score(scores)) == (scores[1], scores[2])
    assert last_score([]) is None


def test_the_spread_is_the_sample_deviation_and_one_seed_has_none() -> None:
    spread = Spread.of([1.0, 2.0, 6.0])
    assert spread is not None
    assert (spread.mean, spread.n) == (3.0, 3)
    assert spread.std == pytest.approx(7**0.5)
    assert Spread.of([4.0]) == Spread(4.0, None, 1)
    assert Spread.of([]) is None


def test_seed_group_points_of_one_seed_have_no_deviation() -> None:
    assert set(values(seed_group_points([5.0], [6.0], T0))) == {
        "agg/n_seeds",
        "agg/normalized_score_last_mean",
        "agg/normalized_score_best_mean",
    }


@pytest.mark.parametrize(
    ("target", "name"),
    [(3600.0, "3600"), (0.5, "0.5"), (-200.0, "-200"), (1e6, "1000000"), (1e21, "1" + "0" * 21), (1e-7, "0.0000001")],
)
def test_targets_are_named_without_signs_that_mlflow_refuses(target: float, name: str) -> None:
    assert target_name(target) == name
    assert re.fullmatch(r"[\w.\- /]+", name)


def test_a_mean_curve_has_the_steps_that_all_seeds_have_and_that_are_not_there_yet() -> None:
    points = seed_group_curve("x", [{20: 10.0, 40: 30.0, 60: 5.0}, {20: 20.0, 40: 50.0}], [20], T0)
    assert [(point.key, point.step, point.value) for point in points] == [("x", 40, 40.0)]


def test_a_long_summary_is_cut_between_blocks_and_that_is_said() -> None:
    whole = note_with_tables({NOTE: "4 trials."}, "first\n\n| a |\n|--:|\n")[NOTE]
    assert whole == "4 trials.\n\nfirst\n\n| a |\n|--:|"
    cut = note_with_tables({NOTE: "4 trials."}, "\n\n".join(f"table {number} " + 900 * "x" for number in range(20)))[
        NOTE
    ]
    assert len(cut) < 8000
    assert cut.endswith("x\n\nThe rest is in report/report.html, an artifact of this run.")
