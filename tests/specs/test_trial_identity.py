from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, create_model

from dmray.methods import METHODS
from dmray.models import MambaConfig
from dmray.specs import DatasetSpec, EvaluationSpec, Spec, TrainingSpec, TrialSpec


def trial(**changes: Any) -> TrialSpec:
    given: dict[str, Any] = {
        "dataset": DatasetSpec(name="maze2d-umaze-v1"),
        "method": "dm",
        "model": METHODS[changes.get("method", "dm")].config(),
        "seed": 0,
        "training": TrainingSpec(),
        "evaluation": EvaluationSpec(),
    }
    return TrialSpec(**(given | changes))


# Ids that people have results under. A test that fails here says that all of those would be run again: change what
# hashes only on purpose, and raise IDENTITY_VERSION then.
RECORDED = json.loads((Path(__file__).parent / "recorded_trials.json").read_text())
recorded = pytest.mark.parametrize("spec", RECORDED.values(), ids=list(RECORDED))


@recorded
def test_recorded_trials_keep_their_ids(spec: dict[str, Any]) -> None:
    assert RECORDED[TrialSpec.model_validate(spec).trial_id] == spec


@recorded
def test_a_new_field_with_a_default_changes_no_trial_id(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One more field in the method's config, in the training and in the evaluation, each with a default."""
    before, method = TrialSpec.model_validate(spec), METHODS[spec["method"]]
    config = create_model("Config", __base__=method.config, later=(int, 3))
    changed = replace(method, backbone=replace(method.backbone, config=config))
    monkeypatch.setitem(METHODS._builtin, method.name, changed)  # type: ignore[arg-type]
    training = create_model("Training", __base__=TrainingSpec, later=(str, "no"))(**spec["training"])
    evaluation = create_model("Evaluation", __base__=EvaluationSpec, later=(float, 0.5))(**spec["evaluation"])
    after = TrialSpec.model_validate(spec).model_copy(update={"training": training, "evaluation": evaluation})
    assert type(after.model).__name__ == "Config"
    assert (after.trial_id, after.seed_group_id) == (before.trial_id, before.seed_group_id)
    other = after.model_copy(update={"model": after.model.model_copy(update={"later": 4})})
    assert other.trial_id != before.trial_id


def test_a_changed_default_changes_no_id_of_a_trial_that_gives_the_value() -> None:
    now = Field(default=7, json_schema_extra={"identity_default": 3})
    old, new = create_model("Old", __base__=Spec, size=(int, 3)), create_model("New", __base__=Spec, size=(int, now))
    assert old().identity() == new(size=3).identity() == {}
    assert old(size=7).identity() == new().identity() == {"size": 7}


def test_a_copy_with_other_values_has_another_id() -> None:
    original, changed = trial(), {"seed": 5, "method": "dm+r"}
    before = original.trial_id, original.seed_group_id  # now computed and kept by the original
    copied = original.model_copy(update=changed)
    assert (copied.trial_id, copied.seed_group_id) == (trial(**changed).trial_id, trial(**changed).seed_group_id)
    assert copied.trial_id != before[0]
    assert copied.seed_group_id != before[1]


@pytest.mark.parametrize("method", ["dm", "hdm", "hdt", "dt-r", "bc", "dlstm"])
def test_ids_of_methods_without_a_target_do_not_depend_on_targets(method: str) -> None:
    asked = EvaluationSpec(target_returns=(1.0, 2.0), return_scale=10.0)
    assert trial(method=method, evaluation=asked).trial_id == trial(method=method).trial_id
    assert trial(method="dt", evaluation=asked).trial_id != trial(method="dt").trial_id


def test_ids_of_methods_without_an_action_token_do_not_depend_on_action_input() -> None:
    own = TrainingSpec(action_input="dt")
    assert trial(method="bc", training=own).trial_id == trial(method="bc").trial_id
    assert trial(method="dm", training=own).trial_id != trial(method="dm").trial_id


def test_a_config_of_another_method_is_an_error() -> None:
    with pytest.raises(ValueError, match="method 'dt' takes a TransformerConfig, not a MambaConfig"):
        trial(method="dt", model=MambaConfig())


def test_a_trial_read_from_json_has_the_same_id() -> None:
    assert TrialSpec.model_validate_json(trial().model_dump_json()).trial_id == trial().trial_id


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"method": "dm+r"},
        {"model": MambaConfig(context_length=10)},
        {"training": TrainingSpec(steps=7)},
        {"evaluation": EvaluationSpec(episodes=7)},
        {"evaluation": EvaluationSpec(action_noise=0.1)},
        {"evaluation": EvaluationSpec(observation_noise=0.1)},
        {"dataset": DatasetSpec(name="maze2d-large-v1")},
        {"dataset": DatasetSpec(name="maze2d-umaze-v1", fraction=0.5)},
    ],
)
def test_everything_that_defines_a_trial_changes_its_id(changes: dict[str, Any]) -> None:
    assert trial(**changes).trial_id != trial().trial_id


def test_moving_a_data_set_keeps_the_id() -> None:
    here, there = (DatasetSpec(name="mine", task="hopper", path=path) for path in ("/a.hdf5", "/b.hdf5"))
    assert trial(dataset=here).trial_id == trial(dataset=there).trial_id


def test_seeds_share_a_group_and_methods_do_not() -> None:
    assert trial(seed=3).seed_group_id == trial().seed_group_id
    assert trial(method="dt").seed_group_id != trial().seed_group_id


def test_the_id_is_a_safe_file_name() -> None:
    assert "+" not in trial(method="dm+r").trial_id


def test_ids_depend_on_the_subgoals_settings_only_where_there_are_subgoals() -> None:
    other = TrainingSpec(subgoal_head="linear", subgoal_target="difference")
    assert trial(method="dm", training=other).trial_id == trial(method="dm").trial_id
    for field in ("subgoal_head", "subgoal_target"):
        one = TrainingSpec(**{field: getattr(other, field)})
        assert trial(method="hdm", training=one).trial_id != trial(method="hdm").trial_id


@pytest.mark.parametrize(("method", "head"), [("hdm", "tanh"), ("hdt", "linear")])
def test_the_head_that_a_method_has_anyway_is_the_same_trial(method: str, head: Any) -> None:
    named = TrainingSpec(subgoal_head=head)
    assert trial(method=method, training=named).trial_id == trial(method=method).trial_id
