"""The sweep files that dmray brings: in a wheel, by name in any folder, copied by `dmray init`."""

from __future__ import annotations

from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.config.pyprojecttoml import apply_configuration
from typer.testing import CliRunner, Result

import dmray
from dmray.cli import init, status, sweep
from dmray.errors import SpecError
from dmray.shipped import shipped_sweeps

ROOT = Path(__file__).parent.parent
FOLDERS = (ROOT / "sweeps", ROOT / "examples")
FILES = sorted(f"{folder.name}/{path.name}" for folder in FOLDERS for path in folder.iterdir() if path.suffix)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_init(*arguments: str) -> Result:
    return CliRunner().invoke(init.app, list(arguments))


def test_a_wheel_has_the_sweep_files_and_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    project = Distribution({"script_name": "setup.py"})
    apply_configuration(project, "pyproject.toml")
    build = project.get_command_obj("build_py")
    build.ensure_finalized()
    build.build_lib = "wheel"
    outputs = build.get_outputs(include_bytecode=False)
    begin = "wheel/dmray/shipped/"
    found = {path.removeprefix(begin) for path in outputs if path.startswith(begin)} - {"__init__.py"}
    assert sorted(found) == FILES


def test_a_name_finds_a_sweep_of_dmray_in_any_folder_and_a_file_here_comes_first(here: Path) -> None:
    assert dmray.load_sweep("quickstart").name == "quickstart"
    planned = CliRunner().invoke(sweep.app, ["quickstart", "--plan", "--local"])
    assert (planned.exit_code, "4 trials" in planned.output) == (0, True), planned.output
    (here / "quickstart").write_text("name: mine\ndatasets: [maze2d-open-v0]\ngrid: [{methods: [dm]}]\nseeds: [0]")
    assert dmray.load_sweep("quickstart").name == "mine"


def test_an_unknown_name_is_an_error_with_the_nearest_and_all_names(here: Path) -> None:
    with pytest.raises(SpecError) as error:
        dmray.load_sweep("quikstart")
    assert "did you mean 'quickstart'?" in str(error.value)
    assert all(name in str(error.value) for name in shipped_sweeps())
    with pytest.raises(SpecError, match=r"sweeps/quickstart\.yaml: no such sweep file; dmray brings one: give 'quick"):
        dmray.load_sweep("sweeps/quickstart.yaml")


def test_the_sweep_of_a_name_is_found_by_the_commands_that_watch_it(here: Path) -> None:
    seen = CliRunner().invoke(status.app, ["quickstart"])
    assert f"{here}/runs/quickstart" in seen.output.replace("\n", "")


def test_init_copies_all_files_and_says_what_to_run(here: Path) -> None:
    done = run_init("new folder")
    assert done.exit_code == 0, done.output
    assert sorted(path.relative_to("new folder").as_posix() for path in Path("new folder").rglob("*.*")) == FILES
    assert "cd 'new folder'\n  dmray sweep sweeps/quickstart.yaml" in done.output
    assert dmray.load_sweep("new folder/sweeps/paper_ablation.yaml").name == "paper_ablation"


def test_init_replaces_a_changed_file_only_by_force_and_writes_nothing_before(here: Path) -> None:
    changed = Path("sweeps/paper.yaml")
    changed.parent.mkdir()
    changed.write_text("name: mine")
    refused = run_init()
    assert (refused.exit_code, Path("examples").exists()) == (1, False)
    assert "sweeps/paper.yaml: there is another file of this name; nothing was written" in refused.output
    assert run_init("--force").exit_code == 0
    assert changed.read_bytes() == (ROOT / changed).read_bytes()
    again = run_init()
    assert (again.exit_code, f"{len(FILES)} files were there already" in again.output) == (0, True)


def test_init_into_something_that_is_no_folder_is_one_sentence(here: Path) -> None:
    Path("file").touch()
    refused = run_init("file")
    assert (refused.exit_code, "file" in refused.output, refused.output.count("error:")) == (1, True, 1)


@pytest.mark.parametrize("option", [["--plan"], ["--resume"], ["--only", "seed=0"], ["--address", "auto"]])
def test_show_refuses_an_option_that_it_would_ignore(here: Path, option: list[str]) -> None:
    refused = CliRunner().invoke(sweep.app, ["quickstart", "--show", *option])
    assert (refused.exit_code, f"{option[0]}: --show only prints the sweep" in refused.output) == (1, True)


def test_show_prints_a_sweep_file_and_checks_its_names(here: Path) -> None:
    shown = CliRunner().invoke(sweep.app, ["quickstart", "--show", "--storage", "elsewhere"])
    Path("shown.yaml").write_text(shown.stdout)
    assert dmray.load_sweep("shown.yaml") == dmray.load_sweep("quickstart", ["storage=elsewhere"])
    wrong = CliRunner().invoke(sweep.app, ["quickstart", "--show", "-o", "datasets=[hoper-medium-v2]"])
    assert (wrong.exit_code, "hopper-medium-v2" in wrong.output) == (1, True)
