"""A sweep file that extends another one, and the merged sweep as a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dmray
from dmray.errors import SpecError
from dmray.shipped import shipped_sweeps
from dmray.specs import EarlyStoppingSpec, EvaluationSpec, ResourcesSpec, SweepSpec, TrainingSpec, load_sweep
from dmray.specs.domains import describes_domain
from dmray.specs.loading import read_values, sweep_of
from dmray.specs.merging import MergedValues
from dmray.specs.showing import as_yaml, show_sweep
from dmray.specs.sweep import FaultSpec, TrackingSpec
from dmray.specs.yaml_values import read_yaml

BASE = """
name: base
datasets: [maze2d-umaze-v1, maze2d-open-v0]
grid: [{methods: [dm, dt]}]
seeds: [0, 1]
training: {steps: 100, batch_size: 8}
evaluation: {quick_episodes: 10}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Writes a sweep file in the current folder; base.yaml is there."""

    def written(name: str, text: str) -> Path:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
        return Path(name)

    monkeypatch.chdir(tmp_path)
    written("base.yaml", BASE)
    return written


Write = Callable[[str, str], Path]


def test_mappings_merge_lists_replace_and_overrides_come_last(write: Write) -> None:
    file = write(
        "more/mine.yaml", "extends: ../base.yaml\nname: mine\nseeds: [7]\ntraining: {steps: 50, grad_clip: 1.0}"
    )
    sweep = load_sweep(file, ["training.grad_clip=2"])
    assert (sweep.name, sweep.seeds, len(sweep.datasets)) == ("mine", (7,), 2)
    training = sweep.training.fields
    assert (training["steps"], training["batch_size"], training["grad_clip"]) == (50, 8, 2.0)


def test_a_file_of_dmray_can_be_extended_by_name_and_a_file_here_comes_first(write: Write) -> None:
    file = write("mine.yaml", "extends: quickstart\nname: mine")
    assert load_sweep(file).datasets[0].name == "maze2d-umaze-expert"
    write("quickstart", BASE)
    assert load_sweep(file).datasets[0].name == "maze2d-umaze-v1"
    assert load_sweep("quickstart").name == "base"
    below = write("more/mine.yaml", "extends: quickstart\nname: mine")
    assert load_sweep(below).datasets[0].name == "maze2d-umaze-expert", "the file must be beside the one that names it"
    write("more/common", BASE)
    assert load_sweep(write("more/mine.yaml", "extends: common\nname: mine")).datasets[0].name == "maze2d-umaze-v1"


def test_the_files_of_dmray_are_shown_by_their_names() -> None:
    shown = show_sweep(read_values("paper_ablation"))
    assert re.search(r"name: paper_ablation +# paper_ablation \(of dmray\)\n", shown)
    assert re.search(r"seeds: \[0, 1, 2, 3\] +# paper \(of dmray\)\n", shown)


LOG = "{log_uniform: [1.0e-5, 1.0e-3], points: 3}"


@pytest.mark.parametrize(
    ("below", "above", "values"),
    [
        ("{choices: [0.1, 0.2]}", LOG, (1e-5, 1e-4, 1e-3)),
        (LOG, "{choices: [0.1, 0.2]}", (0.1, 0.2)),
        (LOG, "[0.1, 0.2]", (0.1, 0.2)),
        ("[0.1, 0.2]", "0.3", (0.3,)),
        ("0.3", LOG, (1e-5, 1e-4, 1e-3)),
    ],
)
def test_several_values_of_a_field_replace_those_of_the_extended_file(
    write: Write, below: str, above: str, values: tuple[float, ...]
) -> None:
    write("base.yaml", BASE.replace("steps: 100", f"steps: 100, learning_rate: {below}"))
    file = write("mine.yaml", f"extends: base.yaml\nname: mine\ntraining: {{learning_rate: {above}}}")
    plan = dmray.plan_sweep(file)
    assert tuple(dict.fromkeys(trial.training.learning_rate for trial in plan.trials)) == values
    assert plan.trials[0].training.steps == 100
    shown = write("shown.yaml", show_sweep(read_values(file)))
    assert dmray.plan_sweep(shown).trial_ids == plan.trial_ids


def test_no_section_of_a_sweep_has_a_field_named_like_several_values() -> None:
    for section in (SweepSpec, TrainingSpec, EvaluationSpec, EarlyStoppingSpec, ResourcesSpec, FaultSpec, TrackingSpec):
        assert not describes_domain(section.model_fields), section


def test_a_mapping_extends_a_file_too(write: Write) -> None:
    assert sweep_of({"extends": "base.yaml", "seeds": [3]}, "sweep").seeds == (3,)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("extends: base.yaml\ntraining: {stepz: 5}", [], "mine.yaml: training.stepz: unknown field, did you mean"),
        ("extends: wrong.yaml\nseeds: [1]", [], "wrong.yaml: training.steps: Input should be greater than 0, not -1"),
        ("extends: base.yaml", ["training.steps=0"], "mine.yaml: -o training.steps: Input should be greater"),
        ("extends: named.yaml", ["datasets.1.name=a b"], "mine.yaml: -o datasets.1.name: Input should be"),
        ("extends: base.yaml\nseeds: [1, 1]", [], "mine.yaml: seeds: given twice: 1"),
        ("extends: twice.yaml\nname: mine", [], "twice.yaml: seeds: given twice: 4"),
        (
            "extends: base.yaml\nevaluation: {episodes: 5}",
            [],
            "mine.yaml, which extends base.yaml: evaluation: quick_episodes 10 is not less than episodes 5",
        ),
        ("extends: bsae.yaml", [], "mine.yaml: extends: bsae.yaml: no such sweep file, did you mean 'base.yaml'?"),
        ("extends: quickstart.yaml", [], "mine.yaml: extends: quickstart.yaml: no such sweep file; dmray brings one"),
        ("extends: sub/bse.yaml", [], "mine.yaml: extends: sub/bse.yaml: no such sweep file, did you mean 'sub/base"),
        ("extends: quikstart", [], "mine.yaml: extends: quikstart: no such sweep file, did you mean 'quickstart'?"),
        ("extends:", [], "mine.yaml: extends: give the name of one sweep file, not null"),
        ("extends: base.yaml\ntraining:", [], "mine.yaml: training: Input should be a mapping of fields, not null"),
        (
            "extends: base.yaml\ntraining: {weight_decay: [0.1, 0.2]}",
            ["training.weight_decay={uniform: [0, 1]}", "training.weight_decay.choices=[0.3]"],
            "mine.yaml: -o training.weight_decay: give one of choices, range, uniform, log_uniform",
        ),
        (
            "extends: base.yaml\ntraining: {weight_decay: {choices: [0.1]}}",
            ["training.weight_decay.uniform=[0, 1]"],
            "mine.yaml, with -o: training.weight_decay: give one of choices, range, uniform, log_uniform",
        ),
        ("extends: [base.yaml]", [], "mine.yaml: extends: give the name of one sweep file, not ['base.yaml']"),
        ("extends: mine.yaml", [], "mine.yaml: extends: a file cannot extend itself; name another"),
        ("extends: second.yaml", [], "mine.yaml: extends: second.yaml itself extends 'base.yaml', and a file"),
        ("extends: list.yaml", [], "mine.yaml: extends: list.yaml: a sweep file is a mapping"),
        (f"extend: base.yaml\n{BASE}", [], "mine.yaml: extend: unknown field, did you mean 'extends'?"),
        (BASE, ["extends=base.yaml"], "-o extends: only a file can extend another one; write it into mine.yaml"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_the_file_or_the_option_in_which_it_is(
    write: Write, text: str, overrides: list[str], message: str
) -> None:
    write("second.yaml", "extends: base.yaml")
    write("wrong.yaml", BASE.replace("100", "-1"))
    write("twice.yaml", BASE.replace("[0, 1]", "[4, 4]"))
    write("list.yaml", "[1]")
    write("sub/base.yaml", BASE)
    write("named.yaml", BASE.replace("maze2d-open-v0", "{name: maze2d-open-v0}"))
    with pytest.raises(SpecError) as error:
        load_sweep(write("mine.yaml", text), overrides)
    assert str(error.value).startswith(message), error.value


def test_a_path_may_begin_with_the_home_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write("more/mine.yaml", "extends: ~/base.yaml")
    assert load_sweep("~/more/mine.yaml").name == "base"


def test_the_file_that_is_proposed_can_be_written_into_extends(write: Write) -> None:
    file = write("more/mine.yaml", "extends: bsae.yaml")
    write("more/base.yaml", BASE)
    with pytest.raises(SpecError, match=r"extends: more/bsae\.yaml: no such sweep file, did you mean 'base\.yaml'\?$"):
        load_sweep(file)


def test_a_mistake_that_planning_finds_is_told_with_its_file_too(write: Write) -> None:
    write("wrong.yaml", BASE.replace("maze2d-open-v0", "maze2d-opn-v0"))
    file = write("mine.yaml", "extends: wrong.yaml\nseeds: [0]")
    with pytest.raises(SpecError, match=r"^wrong\.yaml: datasets\.1: unknown data set 'maze2d-opn-v0', did you mean"):
        dmray.plan_sweep(file)
    with pytest.raises(SpecError, match=r"^mine\.yaml: -o datasets\.0: unknown data set 'hoper'"):
        dmray.plan_sweep(file, ["datasets.0=hoper"])


@pytest.mark.parametrize("name", shipped_sweeps())
def test_what_show_prints_is_a_sweep_file_of_the_same_trials(name: str, tmp_path: Path) -> None:
    first = load_sweep(name).datasets[0]
    new = "new" if first.generate is None else first.name  # the file's overrides may be for it
    changed = f'datasets.0={{name: {new}, task: hopper, path: "/a folder/x.hdf5"}}'
    overrides = ["training.weight_decay=1e-5", changed]
    shown = tmp_path / "shown.yaml"
    shown.write_text(show_sweep(read_values(name, overrides)))
    assert load_sweep(shown) == load_sweep(name, overrides)
    assert [line for line in shown.read_text().splitlines() if len(line) > 80] == []


def test_each_value_that_is_shown_says_where_it_comes_from(write: Write) -> None:
    file = write("mine.yaml", "extends: base.yaml\nname: mine\ntraining: {steps: 50}")
    shown = show_sweep(read_values(file, ["training.batch_size=4", "datasets.1=maze2d-large-v1"]))
    origins = {
        line.split("  #")[0].strip(): line.split("  # ")[1] for line in shown.splitlines() if "  # " in line.strip()
    }
    assert origins["name: mine"] == origins["steps: 50"] == "mine.yaml"
    assert origins["datasets:"] == origins["seeds: [0, 1]"] == "base.yaml"
    assert origins["batch_size: 4"] == origins["- maze2d-large-v1"] == "-o"
    assert origins["grad_clip: 0.25"] == origins["order: methods_together"] == "default"
    values = [line for line in shown.splitlines()[1:] if not line.rstrip().endswith(":")]
    assert [line for line in values if "#" not in line] == ["  - maze2d-umaze-v1"], "it has the comment of its list"


def test_a_password_is_not_shown(write: Write) -> None:
    address = f"http://me:secret-word@{'host' * 20}/x"
    shown = show_sweep(read_values(write("mine.yaml", BASE), [f"tracking.mlflow_uri={address}"]))
    assert "secret-word" not in shown.replace("\\\n      ", "")
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert read_yaml(shown)["tracking"]["mlflow_uri"] == address.replace("secret-word", "***")


def test_a_long_file_name_is_shortened_from_its_beginning(write: Write) -> None:
    file = write(f"{'folder' * 20}/mine.yaml", BASE)
    lines = show_sweep(read_values(file)).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert any(line.startswith("# ...") and line.endswith("/mine.yaml") for line in lines)


SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e30, 1e30) | st.text("ab1 :#,-'\"\\é漢🐜")
)
LONG = st.text('ab \\"', min_size=75, max_size=170)
KEYS = st.sampled_from(["a", "long_key", "null", "1"])
VALUES = st.recursive(
    SCALARS | LONG, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(KEYS, inner), max_leaves=15
)


@settings(max_examples=60)
@given(st.dictionaries(KEYS, VALUES, min_size=1))
def test_any_values_are_read_back_from_their_yaml(content: dict[str, object]) -> None:
    assert read_yaml(as_yaml(content)) == content


def test_merging_keeps_neither_side_as_it_was_changed() -> None:
    base = MergedValues.of({"a": {"b": 1, "c": [1]}}, "base")
    top = MergedValues.of({"a": {"b": 2}}, "top").extending(base).overridden(["a.c.0=5", "a.d=1"])
    assert (top.content, base.content) == ({"a": {"b": 2, "c": [5], "d": 1}}, {"a": {"b": 1, "c": [1]}})
    assert [top.origin_of(("a", key)) for key in "bd"] == ["top", "-o"]
    assert (top.origin_of(("a", "c", "0")), top.origin_of(("a", "c", "1"))) == ("-o", "base, with -o")


def test_a_section_that_is_left_out_is_shown_with_its_defaults(write: Write) -> None:
    file = write("short.yaml", "name: s\ndatasets: [hopper-medium-v2]\ngrid: [{methods: [dm]}]\nseeds: [0]\n")
    shown = show_sweep(read_values(file))
    assert re.search(r"training:\n +steps: \d+ +# default\n", shown)
    assert dmray.plan_sweep(write("shown.yaml", shown)).trial_ids == dmray.plan_sweep(file).trial_ids
