from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmray.errors import SpecError
from dmray.methods import METHODS
from dmray.planning.plan import plan
from dmray.specs import TrainingSpec, load_sweep
from dmray.specs.loading import sweep_of

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
    for model in (trial.model for trial in plan(sweep).trials):
        assert (model.d_model, model.n_layer, model.context_length) == (128, 6, 20)
    training = TrainingSpec.model_validate(sweep.training.fields)
    assert (training.steps, training.batch_size, training.learning_rate) == (1_000_000, 16, 1e-4)
    assert (sweep.evaluation.episodes, sweep.evaluation.every_steps, sweep.evaluation.decode) == (100, 1000, "window")


def test_overrides_reach_into_fields_and_list_items(sweep_file: Path) -> None:
    sweep = load_sweep(
        sweep_file, ["training.learning_rate=1e-3", "datasets.0=maze2d-open-v0", "tracking.mlflow_uri=off"]
    )
    assert sweep.training.fields["learning_rate"] == 1e-3
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
        ("resources.device=gpu", "resources.device: unknown value 'gpu', known: auto, cpu"),
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
        ("datasets=null", "datasets: Input should be a list, not null"),
        ("training.steps='5'", "training.steps: Input should be a whole number, not '5'"),
        ("training.steps=true", "training.steps: Input should be a whole number, not true"),
        ("training.steps=1:00", "training.steps: Input should be a whole number, not '1:00'"),
        ("training.steps=1_00", "training.steps: Input should be a whole number, not '1_00'"),
        ("training.steps=10000000000", "training.steps: Input should be less than or equal to 1000000000"),
        ("training.batch_size=1e12", "training.batch_size: Input should be less than or equal to 1000000"),
        ("training.learning_rate=true", "training.learning_rate: Input should be a number, not true"),
        ("training.learning_rate='1e-3'", "training.learning_rate: Input should be a number, not '1e-3'"),
        ("training.learning_rate=.inf", "training.learning_rate: Input should be a finite number"),
        ("resources.deterministic=1", "resources.deterministic: Input should be true or false, not 1"),
        ("resources.deterministic=yes", "resources.deterministic: Input should be true or false, not 'yes'"),
        ("seeds=[true]", "seeds.0: Input should be a whole number, not true"),
        ("seeds=[0, 1.0, 1]", "seeds: given twice: 1"),
        ("seeds=[9223372036854775808]", "seeds.0: Input should be less than 2147483648"),
        ("seeds=[-1]", "seeds.0: Input should be greater than or equal to 0"),
        ("seeds={a: 1}", "seeds: Input should be a list"),
        (
            "grid.0={methods: [dm], models: [{d_model: true}]}",
            "grid.0.models.0.d_model: Input should be a whole number",
        ),
        ("grid.0={methods: [dm, dm]}", "grid.0: methods: given twice: dm"),
        ("grid.0={methods: [dm], models: [{}, {}]}", "grid.0: models: entries 0 and 1 (counted from 0) are equal"),
        ("evaluation.target_returns=[]", "evaluation.target_returns: Input should be a list with at least one item"),
        ("evaluation.target_returns=[1, 1]", "a target return is given twice"),
        ("evaluation.target_returns=[.nan]", "evaluation.target_returns.0: Input should be a finite number"),
        ("faults.no_progress_timeout_s=1e300", "faults.no_progress_timeout_s: Input should be less than or equal to"),
        ("name=..", "name: Input should be letters"),
        ("name=-a", "name: Input should be letters"),
        ('name="a\\n"', "name: Input should be letters"),
        ("name=" + "a" * 300, "name: "),
        ("name=2024", "name: Input should be text, not 2024"),
        ("name=datasets", "name: the name 'datasets' is reserved"),
        ("storage=''", "storage: "),
        ('storage="a\\0b"', "storage: 'a\\x00b': has a character that cannot be printed"),
        ('tracking.mlflow_uri="a\\tb"', "tracking.mlflow_uri: "),
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
        ("a..b=1", "write it as key.path=value"),
        (".=1", "write it as key.path=value"),
        ("=1", "write it as key.path=value"),
        ("seeds.99999999999999999999=1", "'99999999999999999999' is not one of the 2 items there"),
        ("seeds." + "9" * 5000 + "=1", "is not one of the 2 items there"),
        ("seeds.²=1", "'²' is not one of the 2 items there"),
        ("seeds.\u0660=1", "is not one of the 2 items there"),
        ("seeds.-1=1", "'-1' is not one of the 2 items there"),
        (".".join(["a"] * 2000) + "=1", "the path has 2000 parts"),
        ("seeds=&a [*a]", "inside the value of its own anchor"),
        ("seeds=[0]\n---\n[1]", "a second document begins"),
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


def test_whole_numbers_may_be_written_with_an_exponent_or_with_underscores(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file, ["training.steps=1e5", "training.warmup_steps=10_000", "seeds=[010]"])
    training = sweep.training.fields
    assert (training["steps"], training["warmup_steps"], sweep.seeds) == (100_000, 10_000, (10,))
    assert all(type(number) is int for number in (training["steps"], *sweep.seeds))


def test_an_anchor_and_a_merge_key_give_the_models_of_a_grid(sweep_file: Path) -> None:
    sweep_file.write_text(
        "name: m\ndatasets: [maze2d-umaze-v1]\nseeds: [0]\ngrid:\n- methods: [dm]\n  models:\n"
        "  - &small {d_model: 32, n_layer: 1, context_length: 5}\n  - {<<: *small, context_length: 10}\n"
    )
    sweep = load_sweep(sweep_file, ["grid.0.models.0.n_layer=3"])
    models = [(trial.model.d_model, trial.model.n_layer, trial.model.context_length) for trial in plan(sweep).trials]
    assert models == [(32, 3, 5), (32, 1, 10)], "an override changes one entry, not what shares its anchor"


def test_a_grid_of_millions_of_trials_is_refused_with_its_size(sweep_file: Path) -> None:
    models = [{"d_model": size} for size in range(1, 201)]
    content = {
        "name": "huge",
        "datasets": ["maze2d-umaze-v1"],
        "grid": [{"methods": ["dm"], "models": models}],
        "seeds": range(20_000),
    }
    with pytest.raises(SpecError, match="1 data sets x 20000 seeds x 200 methods and models are 4,000,000 trials"):
        sweep_of(content, "sweep")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.mkdir(), "a folder; give a sweep file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to(path), "cannot read the sweep file"),
        (lambda path: path.write_bytes("name: x".encode("utf-16")), "not UTF-8 text"),
        (lambda path: path.write_bytes(b"#" * (2**22 + 1)), "larger than 4 MiB"),
    ],
)
def test_a_file_that_cannot_be_a_sweep_is_not_read(
    tmp_path: Path, make: Callable[[Path], object], problem: str
) -> None:
    path = tmp_path / "odd.yaml"
    make(path)
    with pytest.raises(SpecError, match=r"odd\.yaml: ") as error:
        load_sweep(path)
    assert problem in str(error.value)


def test_a_mapping_may_have_numpy_numbers_tuples_and_paths() -> None:
    content = {
        "name": "numpy",
        "datasets": ({"name": "mine", "task": "hopper", "path": Path("a.hdf5")},),
        "grid": [{"methods": ("dm",), "models": [{"d_model": np.int64(32)}]}],
        "seeds": np.arange(2),
        "training": {"learning_rate": np.float32(0.5), "steps": np.int32(10)},
        "resources": {"deterministic": np.bool_(True)},
    }
    sweep = sweep_of(content, "sweep")
    assert (sweep.seeds, sweep.training.fields["steps"], sweep.training.fields["learning_rate"]) == ((0, 1), 10, 0.5)
    assert (sweep.datasets[0].path, sweep.resources.deterministic) == ("a.hdf5", True)


def test_an_array_of_several_numbers_is_no_number() -> None:
    class Array:  # as those of torch
        def __index__(self) -> int:
            raise TypeError("only integer tensors of a single element can be converted to an index")

    content = {"name": "x", "datasets": [], "grid": [], "training": {"steps": Array()}}
    with pytest.raises(SpecError, match=r"training\.steps: Input should be a whole number"):
        sweep_of(content, "sweep")


def test_a_mapping_with_other_keys_or_inside_itself_is_an_error() -> None:
    inside: dict[str, object] = {}
    inside["training"] = inside
    for content, problem in (({1: 2}, "the key 1 is not text"), (inside, "a value contains itself")):
        with pytest.raises(SpecError, match=problem):
            sweep_of(content, "sweep")  # type: ignore[arg-type]


def test_a_long_value_is_shortened_in_its_message(sweep_file: Path) -> None:
    for override in (f"order={'x' * 100_000}", f"{'y' * 100_000}=1", f"training.steps={'z' * 100_000}"):
        with pytest.raises(SpecError) as error:
            load_sweep(sweep_file, [override])
        assert len(str(error.value)) < 1000
