from __future__ import annotations

from typing import Any

import pytest

from dmray.specs import DatasetSpec, EvaluationSpec, ModelSpec, TrainingSpec, TrialSpec


def trial(**changes: Any) -> TrialSpec:
    given: dict[str, Any] = {
        "dataset": DatasetSpec(name="maze2d-umaze-v1"),
        "method": "dm",
        "model": ModelSpec(),
        "seed": 0,
        "training": TrainingSpec(),
        "evaluation": EvaluationSpec(),
    }
    return TrialSpec(**(given | changes))


def test_the_id_is_the_same_in_every_process_and_release() -> None:
    # A changed value here orphans every result that users have: raise IDENTITY_VERSION on purpose, never by accident.
    assert trial().trial_id == "maze2d-umaze-v1-dm-s0-411eba17de"


def test_the_id_survives_json() -> None:
    assert TrialSpec.model_validate_json(trial().model_dump_json()).trial_id == trial().trial_id


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"method": "dm+r"},
        {"model": ModelSpec(context_length=10)},
        {"training": TrainingSpec(steps=7)},
        {"evaluation": EvaluationSpec(episodes=7)},
        {"dataset": DatasetSpec(name="maze2d-large-v1")},
    ],
)
def test_everything_that_defines_a_trial_changes_its_id(changes: dict[str, Any]) -> None:
    assert trial(**changes).trial_id != trial().trial_id


def test_moving_a_data_set_keeps_the_id() -> None:
    here, there = (DatasetSpec(name="mine", task="hopper", path=path) for path in ("/a.hdf5", "/b.hdf5"))
    assert trial(dataset=here).trial_id == trial(dataset=there).trial_id


def test_seeds_share_a_cell_and_methods_do_not() -> None:
    assert trial(seed=3).seed_group_id == trial().seed_group_id
    assert trial(method="dt").seed_group_id != trial().seed_group_id


def test_the_id_is_a_safe_file_name() -> None:
    assert "+" not in trial(method="dm+r").trial_id
