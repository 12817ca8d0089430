from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dmray.errors import SpecError
from dmray.methods import METHODS
from dmray.specs import load_sweep

MINIMAL = """
name: small
datasets: [maze2d-umaze-v1]
grid: [{methods: [dm, dt]}]
seeds: [0, 1]
"""


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(MINIMAL)
    return path


def test_a_minimal_file_gets_the_papers_settings(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file)
    for _, model in sweep.grid[0].configurations:
        assert (model.d_model, model.n_layer, model.context_length) == (128, 6, 20)
    assert (sweep.training.steps, sweep.training.batch_size, sweep.training.learning_rate) == (1_000_000, 16, 1e-4)
    assert (sweep.evaluation.episodes, sweep.evaluation.every_steps, sweep.evaluation.decode) == (100, 1000, "window")


def test_overrides_reach_into_fields_and_list_items(sweep_file: Path) -> None:
    sweep = load_sweep(
        sweep_file, ["training.learning_rate=1e-3", "datasets.0=maze2d-open-v0", "tracking.mlflow_uri=off"]
    )
    assert sweep.training.learning_rate == 1e-3
    assert sweep.datasets[0].name == "maze2d-open-v0"
    assert sweep.tracking.mlflow_uri == "off"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainng.steps=3", "trainng: unknown field, did you mean 'training'?"),
        (
            "grid.0.models=[{contex_length: 4}]",
            "grid.0.models.0.contex_length: unknown field, did you mean 'context_length'?",
        ),
        ("grid.0.methods=[dmm]", "grid.0.methods.0: unknown method 'dmm', did you mean 'dm'?"),
        ("evaluation.decode=windw", "evaluation.decode: unknown decode mode 'windw', did you mean 'window'?"),
        ("training.steps=0", "training.steps: Input should be greater than 0, not 0"),
        ("training.learning_rate=.nan", "training.learning_rate: Input should be a finite number"),
        ("seeds=[1, 1]", "seeds: given twice: 1"),
        ("training.steps=1.5", "training.steps: Input should be a whole number, not 1.5"),
        ("training.steps=many", "training.steps: Input should be a whole number, not 'many'"),
        ("training.learning_rate=fast", "training.learning_rate: Input should be a number, not 'fast'"),
        ("training=5", "training: Input should be a mapping of fields, not 5"),
        ("resources.deterministic=perhaps", "resources.deterministic: Input should be true or false, not 'perhaps'"),
        ("seeds=[]", "seeds: Input should be a list with at least one item, not []"),
        ("resources.gpus_per_trial=1.5", "must be below 1 (a fraction of a GPU) or a whole number"),
        (
            "grid.0={methods: [dt], models: [{d_model: 65, n_head: 2}]}",
            "models.0: n_head 2 does not divide d_model 65",
        ),
        (
            "grid.0={methods: [dm], models: [{d_stat: 8}]}",
            "grid.0.models.0.d_stat: unknown field, did you mean",
        ),
        (
            "grid.0={methods: [dm, dt], models: [{d_state: 8}]}",
            "models.0.d_state: method 'dt' has no 'd_state' (dm",
        ),
        ("grid.0={methods: [bc], models: [{n_head: 2}]}", "grid.0.models.0.n_head: method 'bc' has no 'n_head'"),
        ("grid.0={methods: [dm], models: [{d_state: x}]}", "grid.0.models.0.d_state: Input should be a whole number"),
        ("grid.0={methods: [dm], models: [3]}", "grid.0.models.0: Input should be a mapping of fields, not 3"),
        ("datasets=[{name: a, generate: {behaviour: expert}}]", "'generate' needs 'task'"),
        ("datasets=[{name: a/b}]", "datasets.0.name: Input should be letters, digits, '.', '_' and '-', and begin"),
        ("datasets=null", "datasets: Input should be a list, not None"),
    ],
)
def test_an_error_names_the_file_the_field_and_a_valid_value(sweep_file: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        load_sweep(sweep_file, [override])
    assert str(error.value).startswith(f"{sweep_file}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps", "write it as key.path=value"),
        ("seeds.7=1", "'7' is not one of the 2 items there"),
        ("name.first=x", "'name' has no fields"),
        ("seeds=[1", "not valid YAML"),
    ],
)
def test_a_malformed_override_is_an_error_that_names_it(sweep_file: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match="-o ") as error:
        load_sweep(sweep_file, [override])
    assert message in str(error.value)


def test_all_mistakes_of_a_file_are_reported_at_once(sweep_file: Path) -> None:
    with pytest.raises(SpecError) as error:
        load_sweep(sweep_file, ["training.stepz=3", "evaluation.episodes=-1"])
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "is a mapping"),
        ("name: [", "not valid YAML: line 1, column 8: "),
        (MINIMAL + "seeds: [2]\n", "'seeds' is given twice"),
        ("name: x\n", "datasets: missing"),
    ],
)
def test_a_file_that_is_not_a_sweep_is_an_error(sweep_file: Path, text: str, message: str) -> None:
    sweep_file.write_text(text)
    with pytest.raises(SpecError) as error:
        load_sweep(sweep_file)
    assert message in str(error.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.yaml: no such sweep file$"):
        load_sweep(tmp_path / "nowhere.yaml")


def test_a_misspelt_file_name_suggests_the_most_similar_file(sweep_file: Path) -> None:
    with pytest.raises(SpecError, match=rf"seep\.yaml: no such sweep file, did you mean '{sweep_file}'\?"):
        load_sweep(sweep_file.with_name("seep.yaml"))


def test_a_field_of_other_methods_is_told_with_those(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "name: a\ndatasets: [hopper-medium-v2]\nseeds: [0]\ngrid: [{methods: [dm], models: [{n_head: 4}]}]\n"
    )
    with pytest.raises(SpecError, match=r"models\.0\.n_head: method 'dm' has no 'n_head', which is a field of dt, hdt"):
        load_sweep(file)


def test_a_baseline_that_does_not_exist_is_an_error(sweep_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_added", {})
    METHODS.add(replace(METHODS["dm"], name="mine", baselines=("dtt",)))
    with pytest.raises(SpecError, match=r"grid\.0: the baseline of method 'mine': unknown method 'dtt'"):
        load_sweep(sweep_file, ["grid.0.methods=[mine]"])
