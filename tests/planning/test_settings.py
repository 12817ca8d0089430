"""From several values and overrides to trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dmray.driver.plan_view import render_plan
from dmray.errors import SpecError
from dmray.planning.plan import Plan, plan
from dmray.planning.settings import details_of
from dmray.planning.trial_filter import TrialFilter, select_trials
from dmray.specs.loading import sweep_of
from tests.sweeps import tiny_plan

SMALL = {"d_model": 16, "n_layer": 1, "context_length": 4}
TRAINING = {"steps": 40, "batch_size": 8, "learning_rate": [1e-3, 1e-4], "warmup_steps": 5}


def planned(**changes: Any) -> Plan:
    content: dict[str, Any] = {
        "name": "several",
        "datasets": ["antmaze-umaze-v2", "maze2d-umaze-v1", "kitchen-mixed-v0"],
        "grid": [{"methods": ["dm", "dt"], "models": [SMALL]}],
        "seeds": [0],
        "training": {"steps": 40},
        "evaluation": {"episodes": 4, "every_steps": 20, "cohort_size": 2},
    }
    return plan(sweep_of(content | changes, "sweep"))


def test_every_combination_of_the_values_is_a_trial_and_the_methods_come_together(tmp_path: Path) -> None:
    grid = [{"methods": ["dm", "dt"], "models": [SMALL | {"d_model": [16, 32]}]}]
    trials = tiny_plan(tmp_path, grid=grid, training=TRAINING).trials
    found = [(trial.model.d_model, trial.training.learning_rate, trial.method) for trial in trials]
    assert found == [(width, rate, method) for width in (16, 32) for rate in (1e-3, 1e-4) for method in ("dm", "dt")]


def test_a_trial_is_the_same_whether_its_value_stands_in_a_list_or_alone(tmp_path: Path) -> None:
    several = tiny_plan(tmp_path, training=TRAINING)
    alone = tiny_plan(tmp_path, training=TRAINING | {"learning_rate": 1e-4})
    assert set(alone.trial_ids) < set(several.trial_ids)
    assert len(several.trials) == 2 * len(alone.trials)


def test_overrides_are_for_their_methods_and_data_sets_and_the_later_one_counts() -> None:
    overrides = [
        {"methods": ["dt"], "training": {"learning_rate": [3e-4, 1e-3]}},
        {
            "datasets": ["antmaze-*"],
            "families": ["kitchen"],
            "model": {"context_length": 9},
            "evaluation": {"episodes": 5},
        },
        {"methods": ["d*"], "datasets": ["kitchen-mixed-v0"], "training": {"learning_rate": 2e-4}},
    ]
    found = [
        (trial.dataset.name[:4], trial.method, trial.training.learning_rate, trial.model.context_length)
        for trial in planned(overrides=overrides).trials
    ]
    assert found == [
        *(("antm", "dm", 1e-4, 9), ("antm", "dt", 3e-4, 9), ("antm", "dt", 1e-3, 9)),
        *(("maze", "dm", 1e-4, 4), ("maze", "dt", 3e-4, 4), ("maze", "dt", 1e-3, 4)),
        *(("kitc", "dm", 2e-4, 9), ("kitc", "dt", 2e-4, 9)),
    ]
    episodes = {trial.dataset.name[:4]: trial.evaluation.episodes for trial in planned(overrides=overrides).trials}
    assert episodes == {"antm": 5, "maze": 4, "kitc": 5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"overrides": [{"families": ["kitchn"], "training": {"steps": 1}}]},
            "overrides.0.families.0: no family of this sweep is 'kitchn', did you mean 'kitchen'?",
        ),
        (
            {
                "grid": [{"methods": ["dm"]}, {"methods": ["dt"]}],
                "overrides": [{"methods": ["dm", "dt"], "model": {"n_head": 2}}],
            },
            "overrides.0.model.n_head: method 'dm' has no 'n_head', which is a field of dt, hdt",
        ),
        (
            {"overrides": [{"methods": ["dt"], "model": {"n_head": 3}}]},
            "grid.0.models.0: n_head 3 does not divide d_model 16 (dt on antmaze-umaze-v2)",
        ),
        (
            {"overrides": [{"methods": ["dt"], "evaluation": {"quick_episodes": 9}}]},
            "evaluation: quick_episodes 9 is not less than episodes 4 (dt on antmaze-umaze-v2)",
        ),
        (
            {"overrides": [{"methods": ["dt"], "evaluation": {"episodes": -1}}]},
            "overrides.0.evaluation.episodes: Input should be greater than 0, not -1",
        ),
        (
            {"overrides": [{"methods": ["dt"], "evaluation": {"decode": "stream:2"}, "model": {"context_length": 1}}]},
            "overrides.0.evaluation.decode stream:2: ",
        ),
        (
            {"training": {"learning_rate": {"log_uniform": [1e-5, 1e-3]}}},
            "training.learning_rate: an interval has no number of values; add points: n, or a 'search' section",
        ),
        (
            {"training": {"steps": {"range": [1, 1000]}, "warmup_steps": {"range": [1, 1000]}}},
            "all values of training.steps (1,000 values), training.warmup_steps (1,000 values) are 6,000,000 trials",
        ),
        (
            {"grid": [{"methods": ["dt"], "models": [SMALL | {"d_model": [16, 24], "n_head": [2, 16]}]}]},
            "grid.0.models.0: n_head 16 does not divide d_model 24",
        ),
    ],
)
def test_what_sections_say_together_is_checked_and_named_by_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        planned(**changes)
    assert message in str(error.value)


def test_the_details_name_what_tells_the_settings_of_one_method_apart() -> None:
    overrides = [{"methods": ["dt"], "training": {"learning_rate": [3e-4, 1e-3]}}]
    trials = planned(datasets=["maze2d-umaze-v1"], overrides=overrides).trials
    details = {trial.trial_id: details_of(trials)[trial.seed_group_id] for trial in trials}
    assert [(trial.method, details[trial.trial_id]) for trial in trials] == [
        ("dm", "learning_rate 1e-4"),
        ("dt", "learning_rate 3e-4"),
        ("dt", "learning_rate 1e-3"),
    ]
    one_each = planned(datasets=["maze2d-umaze-v1"], overrides=[overrides[0] | {"training": {"learning_rate": 3e-4}}])
    assert set(details_of(one_each.trials).values()) == {""}


def test_the_plan_lists_fields_that_have_several_values() -> None:
    overrides = [{"methods": ["dt"], "training": {"learning_rate": [3e-4, 1e-3]}}]
    console = Console(width=100, record=True)
    console.print(render_plan(planned(overrides=overrides)))
    shown = console.export_text()
    assert "learning_rate  dm: 1e-4; dt: 3e-4, 1e-3" in shown
    assert "batch_size" not in shown


@pytest.mark.parametrize("only", ["learning_rate=3e-4", "learning_rate=0.0003", "learning_rate=3*e-4|0.0003,method=dt"])
def test_trials_are_selected_by_a_value_of_training_however_it_is_written(only: str) -> None:
    overrides = [{"methods": ["dt"], "training": {"learning_rate": [3e-4, 1e-3]}}]
    trials = select_trials(planned(overrides=overrides), TrialFilter(only))
    assert {(trial.method, trial.training.learning_rate) for trial in trials} == {("dt", 3e-4)}


def test_settings_of_a_method_compete_in_early_stopping(tmp_path: Path) -> None:
    rule = {"grace_steps": 20, "reduction_factor": 2}
    trials = tiny_plan(tmp_path, training=TRAINING, early_stopping=rule).trials
    assert len({trial.competitors_id(across_methods=False) for trial in trials}) == 2
    with pytest.raises(SpecError, match="at most 1 trials of a seed compete"):
        tiny_plan(tmp_path, training=TRAINING | {"learning_rate": 1e-3}, early_stopping=rule)


def test_methods_without_subgoals_are_one_trial_whatever_the_subgoals_settings() -> None:
    training = {"steps": 40, "subgoal_head": ["tanh", "linear"], "subgoal_target": ["state", "difference"]}
    grid = [{"methods": ["hdm", "dm"], "models": [SMALL]}]
    trials = planned(datasets=["maze2d-umaze-v1"], grid=grid, training=training).trials
    assert [trial.method for trial in trials].count("hdm") == 4
    details = details_of(trials)
    assert sorted(details.values())[0] == "", "nothing tells DM's only trial from others"
    assert "subgoal_head linear, subgoal_target difference" in details.values()
    assert len(trials) == len(details) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"steps": 40, "subgoal_head": "linear"}},
        {"training": {"steps": 40, "subgoal_head": ["tanh", "linear"]}},
    ],
)
def test_a_field_of_training_that_no_method_of_the_sweep_uses_is_refused(changes: dict[str, Any]) -> None:
    message = "^training.subgoal_head: changes nothing for method 'dm', nor .*; it is a field for hdm, hdt$"
    with pytest.raises(SpecError, match=message):
        planned(**changes)
    assert planned(training={"steps": 40, "subgoal_head": "published"}).trials


def test_a_field_that_an_override_gives_to_methods_without_use_for_it_is_refused() -> None:
    grid = [{"methods": ["hdm", "dm"], "models": [SMALL]}]
    override = {"methods": ["dm"], "training": {"subgoal_target": "difference"}}
    with pytest.raises(SpecError, match=r"^overrides.0.training.subgoal_target: changes nothing for method 'dm'"):
        planned(grid=grid, overrides=[override])
    assert planned(grid=grid, overrides=[{**override, "methods": ["hdm"]}]).trials
