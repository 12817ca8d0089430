"""Presets in a sweep file: what they set, what wins over them, and how settings are named after them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dmray.errors import SpecError
from dmray.methods import METHODS, Preset
from dmray.planning.plan import Plan, plan
from dmray.planning.settings import details_of
from dmray.planning.trial_filter import TrialFilter, select_trials
from dmray.specs import SweepSpec, TrialSpec, load_sweep
from dmray.specs.loading import sweep_of

SMALL = {"d_model": 16, "n_layer": 1, "context_length": 4}
FAIRNESS = Path(__file__).parents[2] / "sweeps" / "fairness.yaml"
CORL_START = {"activation": "gelu", "timestep_init": 0.02, "embedding_init": "normal", "attention_init": "xavier"}


def block(*methods: str, **fields: Any) -> dict[str, Any]:
    return {"methods": list(methods), "models": [SMALL], **fields}


def planned(*grid: dict[str, Any], **changes: Any) -> Plan:
    content: dict[str, Any] = {
        "name": "presets",
        "datasets": ["maze2d-umaze-v1"],
        "grid": list(grid),
        "seeds": [0],
        "training": {"steps": 40, "batch_size": 8},
        "evaluation": {"episodes": 4, "every_steps": 20},
    }
    return plan(sweep_of(content | changes, "sweep"))


def one(*grid: dict[str, Any], **changes: Any) -> TrialSpec:
    (trial,) = planned(*grid, **changes).trials
    return trial


def names(trials: Plan) -> list[str]:
    details = details_of(trials.trials)
    return [f"{METHODS[each.method].label} ({details[each.seed_group_id]})" for each in trials.trials]


def test_a_value_of_training_that_presets_replace_for_every_method_is_refused() -> None:
    training = {"steps": 40, "batch_size": 8, "window_anchor": "first"}
    with pytest.raises(SpecError, match=r"^training.window_anchor: 'first' is for no trial, because grid.0.preset.win"):
        planned(block("dt", "dt-r", preset="paper"), training=training)
    assert len(planned(block("dt", preset="paper"), block("dm"), training=training).trials) == 2, "it is for DM"
    assert one(block("dt", preset="corl"), training=training).preset == "corl", "the same value"


@pytest.mark.parametrize("preset", METHODS["dt"].presets, ids=lambda preset: preset.name)
@pytest.mark.parametrize("method", ["dt", "dt-r"])
def test_a_preset_sets_its_fields_and_a_trial_knows_its_name(preset: Preset, method: str) -> None:
    trial = one(block(method, preset=preset.name))
    assert trial.model.model_dump().items() >= {**SMALL, **preset.model}.items()
    assert trial.training.model_dump().items() >= {"steps": 40, "batch_size": 8, **preset.training}.items()
    assert trial.preset == preset.name
    assert TrialSpec.model_validate_json(trial.model_dump_json()).preset == preset.name


def test_the_trial_of_preset_paper_is_the_trial_without_a_preset() -> None:
    assert one(block("dt", preset="paper")).trial_id == one(block("dt")).trial_id
    assert len(planned(block("dt"), block("dt", preset=["paper", "corl"])).trials) == 2


def test_the_trial_of_a_preset_is_that_of_its_fields() -> None:
    training = {"steps": 40, "batch_size": 8, "action_input": "dt", "window_anchor": "first"}
    training |= {"episode_weighting": "length", "loss_mean": "all"}
    model = SMALL | CORL_START | {"residual_init": "plain"}
    by_hand = one({"methods": ["dt"], "models": [model]}, training=training)
    assert one(block("dt", preset="corl")).trial_id == by_hand.trial_id


def test_several_presets_are_a_grid_with_models_and_methods() -> None:
    trials = planned(block("dt", "dt-r", models=[SMALL, SMALL | {"n_layer": 2}], preset=["paper", "corl"])).trials
    found = [(trial.model.n_layer, trial.preset, trial.method) for trial in trials]
    assert found == [(n, preset, method) for n in (1, 2) for preset in ("paper", "corl") for method in ("dt", "dt-r")]


def test_models_and_overrides_win_over_a_preset_and_a_preset_over_training() -> None:
    training = {"steps": 40, "episode_weighting": "uniform"}
    overrides = [{"methods": ["dt"], "model": {"residual_init": "scaled"}, "training": {"action_input": "paper"}}]
    grid = block("dt", models=[SMALL | {"activation": "relu"}], preset="corl")
    trial = one(grid, training=training, overrides=overrides)
    model, given = trial.model.model_dump(), trial.training
    assert (model["activation"], model["residual_init"], model["timestep_init"]) == ("relu", "scaled", 0.02)
    assert (given.episode_weighting, given.action_input, given.loss_mean) == ("length", "paper", "all")
    assert trial.preset is None


@pytest.mark.parametrize(
    ("grid", "training", "message"),
    [
        (block("dt", preset="crl"), {}, "grid.0.preset: method 'dt': unknown preset 'crl', did you mean 'corl'?"),
        (
            block("dt", "dm", preset="corl"),
            {},
            "grid.0.preset: method 'dm' has no presets, which dt, dt-r have; give 'dm' a block of its own in 'grid'",
        ),
        (block("dt", preset=["chen", "chen"]), {}, "grid.0: preset: given twice: chen"),
        (block("dt", presets="corl"), {}, "grid.0.presets: unknown field, did you mean 'preset'?"),
        (
            block("dt", preset="corl"),
            {"action_input": ["paper", "dt"]},
            "training.action_input: has several values, but preset 'corl' of grid.0.preset gives one; write them under "
            "'overrides' for the methods that they are for",
        ),
    ],
)
def test_a_preset_that_cannot_be_used_is_an_error(grid: dict[str, Any], training: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        planned(grid, training=training)


def test_settings_are_named_after_their_preset_and_other_methods_are_not() -> None:
    every = [block("dm", "bc"), block("dt", preset=["paper", "chen", "corl"])]
    assert names(planned(*every)) == ["DM ()", "BC ()", "DT (paper)", "DT (chen)", "DT (corl)"]
    budgets = planned(*every, training={"steps": [5, 10]})
    assert set(names(budgets)) == {
        f"{name}steps {steps})"
        for name in ("DM (", "BC (", "DT (paper, ", "DT (chen, ", "DT (corl, ")
        for steps in (5, 10)
    }
    assert names(planned(block("dt", preset="corl"))) == ["DT ()"], "there is one setting"


def test_a_setting_that_is_no_preset_lists_what_differs() -> None:
    found = names(planned(block("dt", models=[SMALL | {"timestep_init": [1.0, 0.02]}])))
    assert found == ["DT (paper)", "DT (timestep_init 0.02)"]
    widths = [SMALL | {"d_model": [16, 32]}]
    assert names(planned(block("dt", models=widths, preset="chen"))) == ["DT (d_model 16)", "DT (d_model 32)"]


def test_trials_are_selected_by_their_preset() -> None:
    whole = planned(block("dm"), block("dt", preset=["paper", "corl"]))
    assert [trial.preset for trial in select_trials(whole, TrialFilter("preset=corl"))] == ["corl"]
    with pytest.raises(SpecError, match="no trial has preset=chen"):
        select_trials(whole, TrialFilter("preset=chen"))


def test_a_search_chooses_among_presets() -> None:
    search = {"algorithm": "grid", "seeds": [100]}
    trials = planned(block("dt", preset=["paper", "chen", "corl"]), search=search).trials
    assert [(trial.preset, trial.seed) for trial in trials] == [("paper", 100), ("chen", 100), ("corl", 100)]


def test_the_sweep_of_a_manifest_plans_to_the_same_trials() -> None:
    whole = planned(block("dt", preset=["paper", "corl"]))
    again = SweepSpec.model_validate_json(whole.sweep.model_dump_json())
    assert (again, plan(again).trial_ids) == (whole.sweep, whole.trial_ids)


def test_a_method_whose_presets_give_different_fields_is_refused() -> None:
    one, other = Preset("a", "", {"dropout": 0.0}), Preset("b", "", {"n_head": 2})
    with pytest.raises(ValueError, match="preset 'b': all presets give the same fields; look at dropout, n_head"):
        replace(METHODS["dt"], presets=(one, other))
    with pytest.raises(ValueError, match="drop_out"):
        replace(METHODS["dt"], presets=(Preset("a", "", {"drop_out": 0.0}),))


def test_the_fairness_sweep_at_toy_size_compares_every_preset_at_every_budget() -> None:
    """On data that needs no simulator; the file's own data sets are planned with all files of `sweeps`."""
    toy = "{behaviour: expert, transitions: 500}"
    changes = [f"datasets.{n}.{field}" for n in (0, 1) for field in ("task=maze2d-umaze", f"generate={toy}")]
    trials = plan(load_sweep(FAIRNESS, changes)).trials
    said = re.search(r"= (\d+) trials", FAIRNESS.read_text())
    assert said is not None
    assert len(trials) == int(said[1]) == 2 * 4 * 4 * 3
    steps = [trial.training.steps for trial in trials]
    assert sorted(set(steps)) == [500, 2_000, 8_000, 30_000]
    assert {(trial.method, trial.preset) for trial in trials} == {
        ("dm", None), ("dt", "paper"), ("dt", "chen"), ("dt", "corl"),
    }  # fmt: skip
