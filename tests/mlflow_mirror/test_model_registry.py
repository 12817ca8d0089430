"""Which policies are put into the model registry."""

from __future__ import annotations

import pytest

from dmray.mlflow_mirror.layout import alias_name, model_name
from dmray.mlflow_mirror.model_registry import BestPolicy, FinishedTrial, best_policies
from dmray.specs import TrialSpec
from tests.mlflow_mirror.examples import example_sweep, trials_of


def finished(scores: dict[tuple[str, int], list[float]], **changes: object) -> list[FinishedTrial]:
    """Trials by (method, d_model) with the scores of seeds 0, 1, 2."""
    sweep = example_sweep(
        grid=[{"methods": ["dm", "dt"], "models": [{"d_model": 64}, {"d_model": 128}]}], seeds=[0, 1, 2], **changes
    )
    trials = {(trial.method, trial.model.d_model, trial.seed): trial for trial in trials_of(sweep)}
    return [
        FinishedTrial(trials[method, width, seed], f"{method}-{width}-{seed}", score)
        for (method, width), of_seeds in scores.items()
        for seed, score in enumerate(of_seeds)
    ]


def only(chosen: list[BestPolicy]) -> BestPolicy:
    (policy,) = chosen
    return policy


def test_the_seed_group_with_the_higher_mean_wins_and_its_middle_seed_stands_for_it() -> None:
    policy = only(best_policies(finished({("dm", 64): [90, 10, 20], ("dm", 128): [50, 70, 48]}), "x"))
    assert (policy.run_id, policy.seed_group_score) == ("dm-128-0", 56.0)
    assert (policy.model, policy.alias) == ("dmray-dm-hopper", "hopper-medium-v2")
    assert (policy.tags["dmray.score"], policy.tags["dmray.seeds"], policy.tags["dmray.sweep"]) == (
        "50",
        "3",
        "x",
    )


def test_of_two_middle_seeds_the_smaller_stands() -> None:
    assert only(best_policies(finished({("dm", 64): [40, 60]}), "x")).run_id == "dm-64-0"


def test_methods_do_not_compete() -> None:
    chosen = best_policies(finished({("dm", 64): [90], ("dt", 64): [10]}), "x")
    assert [(each.model, each.run_id) for each in chosen] == [
        ("dmray-dm-hopper", "dm-64-0"),
        ("dmray-dt-hopper", "dt-64-0"),
    ]


def test_nothing_finished_has_no_best_policy() -> None:
    assert best_policies([], "x") == []


def one_trial(decode: str, method: str = "dm") -> TrialSpec:
    sweep = example_sweep(grid=[{"methods": [method]}], evaluation={"decode": decode}, seeds=[0])
    return trials_of(sweep)[0]


@pytest.mark.parametrize(
    ("decode", "alias"), [("window", "hopper-medium-v2"), ("stream:2", "hopper-medium-v2--stream_2")]
)
def test_scores_of_other_decode_modes_stand_beside_not_against(decode: str, alias: str) -> None:
    assert alias_name(one_trial(decode)) == alias


def test_a_name_in_the_registry_has_no_plus() -> None:
    assert model_name(one_trial("window", "dm+r")) == "dmray-dm_r-hopper"
