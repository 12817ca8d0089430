"""Several values for one field of a sweep file: how they are written, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dmray.errors import SpecError
from dmray.specs import Interval, SweepSpec, Values
from dmray.specs.domains import domain_of, shown_value
from dmray.specs.loading import sweep_of
from dmray.tasks import task_of

CONTENT: dict[str, Any] = {
    "name": "small",
    "datasets": ["maze2d-umaze-v1"],
    "grid": [{"methods": ["dm", "dt"]}],
    "seeds": [0, 1],
}
RECORDED = {"name": "open", "task": "maze2d-open"}


@pytest.mark.parametrize(
    ("written", "annotation", "expected"),
    [
        (3e-4, float, None),
        ([1e-4, 3e-4], float, Values((1e-4, 3e-4))),
        ({"choices": ["a", "b"]}, str, Values(("a", "b"))),
        ([4.0, 2.0], tuple[float, ...] | None, None),
        ({"choices": [[4.0], [2.0]]}, tuple[float, ...] | None, Values(([4.0], [2.0]))),
        ({"range": [10, 50, 20]}, int, Values((10, 30, 50))),
        ({"range": [1, 3]}, int, Values((1, 2, 3))),
        ({"range": [0.1, 0.3, 0.1]}, float, Values((0.1, 0.2, 0.3))),
        ({"log_uniform": [1e-5, 1e-3], "points": 3}, float, Values((1e-5, 1e-4, 1e-3))),
        ({"log_uniform": [16, 256], "points": 5}, int, Values((16, 32, 64, 128, 256))),
        ({"uniform": [0, 0.1], "points": 3}, float, Values((0, 0.05, 0.1))),
        ({"uniform": [0, 0.1]}, float, Interval(0, 0.1, log=False, whole=False)),
        ({"log_uniform": [16, 256]}, int, Interval(16, 256, log=True, whole=True)),
    ],
)
def test_a_domain_is_read_from_what_is_written(written: Any, annotation: Any, expected: Any) -> None:
    assert domain_of(written, annotation) == expected


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ([], "give a list with at least one value"),
        ([1, 1.0], "the value 1 is given twice"),
        ({"choice": [1]}, "unknown word 'choice' for several values, did you mean 'choices'"),
        ({}, "give one of choices, range, uniform, log_uniform"),
        ({"choices": [1], "range": [1, 2]}, "give one of"),
        ({"choices": [1], "points": 2}, "points belongs to uniform and log_uniform"),
        ({"range": [1, 10, 2]}, r"steps of 2 lead from 1 to 9, not 10; write that as the end"),
        ({"range": [2, 1]}, "with low <= high"),
        ({"range": [0, 1e9, 1]}, "more than 100,000 values"),
        ({"range": 3}, r"give \[low, high\] or \[low, high, step\], not 3"),
        ({"uniform": [1, "2"]}, "'2' is not a number"),
        ({"uniform": [2, 1]}, "with low < high"),
        ({"log_uniform": [0, 1]}, "and low above 0"),
        ({"uniform": [0.5, 2]}, "the field takes whole numbers; give whole ends"),
        ({"uniform": [1, 3], "points": 9}, "are not all different; give fewer"),
        ({"uniform": [1, 3], "points": 1}, "points: give a whole number from 2"),
    ],
)
def test_a_domain_that_is_written_otherwise_is_an_error(written: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        domain_of(written, int)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"learning_rate": [1e-4, -1]}}, "sweep: training.learning_rate: Input should be greater than 0"),
        ({"training": {"learning_rate": {"uniform": [-1, 1]}}}, "training.learning_rate: Input should be greater than"),
        ({"training": {"steps": {"rang": [1, 2]}}}, "training.steps: unknown word 'rang'"),
        ({"training": {"learning_rat": [1, 2]}}, "training.learning_rat: unknown field, did you mean"),
        (
            {"grid": [{"methods": ["dm"], "models": [{"d_model": [0, 8]}]}]},
            "grid.0.models.0.d_model: Input should be gre",
        ),
        (
            {"grid": [{"methods": ["dm"], "models": [{}, {"n_layer": {"x": 1}}]}]},
            "grid.0.models.1.n_layer: unknown word",
        ),
        ({"evaluation": {"episodes": [1, 2]}}, "evaluation.episodes: Input should be a whole number, not [1, 2]"),
        (
            {"datasets": ["maze2d-umaze-v1", RECORDED | {"generate": {"transitions": [10, -1]}}]},
            "datasets.1.generate.transitions: Input should be greater than 0, not -1",
        ),
        (
            {"datasets": [RECORDED | {"generate": {"transitions": {"uniform": [1, 9]}}}]},
            "datasets.0.generate.transitions: a data set has no intervals; add points: n",
        ),
        (
            {"datasets": [RECORDED | {"generate": {"seed": {"range": [0, 999]}, "transitions": {"range": [1, 999]}}}]},
            "datasets.0: 999,000 data sets; a sweep has at most",
        ),
        ({"overrides": [{"training": {"steps": 1}}]}, "overrides.0: give the methods, datasets or families"),
        ({"overrides": [{"methods": ["dt"]}]}, "overrides.0: give the values: fields of model, training or evaluation"),
        (
            {"overrides": [{"methods": ["dt"], "model": {"d_modl": 1}}]},
            "overrides.0.model.d_modl: unknown field 'd_modl'",
        ),
        (
            {"overrides": [{"methods": ["dt"], "evaluation": {"decode": ["window", "recurrent"]}}]},
            "overrides.0.evaluation.decode: a field of evaluation has one value",
        ),
        ({"overrides": [{"methods": ["dt"], "training": {"steps": 0}}]}, "overrides.0.training.steps: Input should be"),
        (
            {"overrides": [{"methods": ["hdt"], "training": {"steps": 1}}]},
            "overrides.0.methods.0: no method of this sweep is 'hdt', did you mean 'dt'?",
        ),
        (
            {"overrides": [{"datasets": ["maze3d-umaze-v1"], "training": {"steps": 1}}]},
            "overrides.0.datasets.0: no data set of this sweep is 'maze3d-umaze-v1', did you mean 'maze2d-umaze-v1'?",
        ),
    ],
)
def test_a_mistake_in_several_values_or_overrides_is_named_by_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        sweep_of(CONTENT | changes, "sweep")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_data_set_with_several_values_is_several_data_sets_with_names_that_say_so() -> None:
    generate = {"transitions": [1000, 5000], "behaviour": ["expert", "play"]}
    sweep = sweep_of(CONTENT | {"datasets": ["maze2d-umaze-v1", RECORDED | {"generate": generate}]}, "sweep")
    assert [dataset.name for dataset in sweep.datasets] == [
        "maze2d-umaze-v1",
        "open-transitions-1000-behaviour-expert",
        "open-transitions-1000-behaviour-play",
        "open-transitions-5000-behaviour-expert",
        "open-transitions-5000-behaviour-play",
    ]
    assert sweep.datasets[3].generate is not None
    assert sweep.datasets[3].generate.transitions == 5000


def test_parts_of_a_published_data_set_have_names_of_their_own_and_its_task() -> None:
    given = {"name": "hopper-medium-v2", "fraction": [1, 0.25]}
    sweep = sweep_of(CONTENT | {"datasets": [given, RECORDED | {"generate": {}, "fraction": [0.5]}]}, "sweep")
    assert [dataset.name for dataset in sweep.datasets] == [
        "hopper-medium-v2-fraction-1",
        "hopper-medium-v2-fraction-0.25",
        "open-fraction-0.5",
    ]
    assert [dataset.catalog for dataset in sweep.datasets] == ["hopper-medium-v2", "hopper-medium-v2", None]
    assert {task_of(dataset).name for dataset in sweep.datasets[:2]} == {"hopper"}
    with pytest.raises(SpecError, match=r"datasets\.0\.fraction.*less than or equal to 1"):
        sweep_of(CONTENT | {"datasets": [given | {"fraction": [1, 1.5]}]}, "sweep")
    names = sweep_of(CONTENT | {"datasets": [RECORDED | {"name": ["a", "b"], "path": "x.hdf5"}]}, "sweep").datasets
    assert [dataset.name for dataset in names] == ["a", "b"]
    files = sweep_of(CONTENT | {"datasets": [RECORDED | {"path": ["/d/one two.hdf5", "/d/3.hdf5"]}]}, "sweep").datasets
    assert [dataset.name for dataset in files] == ["open-path-one_two", "open-path-3"]


def test_a_sweep_with_several_values_survives_its_manifest() -> None:
    changes = {
        "training": {"learning_rate": {"log_uniform": [1e-5, 1e-3], "points": 3}, "steps": [10, 20]},
        "grid": [{"methods": ["dm"], "models": [{"d_model": [8, 16]}]}],
        "overrides": [{"methods": ["dm"], "training": {"batch_size": [1, 2]}}],
    }
    sweep = sweep_of(CONTENT | changes, "sweep")
    text = sweep.model_dump_json()
    assert SweepSpec.model_validate_json(text) == sweep
    assert json.loads(text)["training"]["learning_rate"] == {"log_uniform": [1e-5, 1e-3], "points": 3}
    assert json.loads(text)["training"]["batch_size"] == 16, "fields that are left out have their default"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3e-4, "3e-4"),
        (1.25e-5, "1.25e-5"),
        (0.1, "0.1"),
        (64, "64"),
        (True, "true"),
        ((4.0, 2.0), "[4, 2]"),
        ("a", "a"),
    ],
)
def test_values_are_shown_as_people_write_them(value: Any, text: str) -> None:
    assert shown_value(value) == text
