"""Families of other packages: when they are loaded, and what happens when one is broken or takes a name."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dmray.errors import PluginError
from dmray.plugins import forget_plugins
from dmray.tasks import DATASETS, FAMILIES, TASKS, DatasetEntry, TaskFamily
from tests.plugins import activate, install

LINE = """
from dmray.tasks import DatasetEntry, ReferenceScores, Task, TaskFamily
from dataclasses import replace

LINE = Task("{task}", "{family}", "{protocol}", "{engine}", "x", (("position", 1),), 1, 1, 1.0, 20,
            ReferenceScores(0.0, 1.0, "us"), (1.0,), 1.0, "us")
FAMILY = TaskFamily((LINE,), (DatasetEntry("{dataset}", "{task}", "https://here.invalid/x.hdf5"),))
SIMULATED = replace(FAMILY, simulator=lambda: None)

def family():
    return FAMILY
"""
NAMES = {"task": "line", "family": "line", "protocol": "line", "engine": "line", "dataset": "line-v0"}
Install = Callable[..., None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package of one module for the test."""

    def add(name: str, code: str, value: str = "FAMILY") -> None:
        source = tmp_path / f"{name}-source"
        source.mkdir()
        (source / f"{name}_module.py").write_text(code)
        (source / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "1.2"\n'
            f'[project.entry-points."dmray.tasks"]\n{name}_point = "{name}_module:{value}"\n'
        )
        install(source, tmp_path / "site")
        activate(tmp_path / "site", monkeypatch)
        monkeypatch.delitem(sys.modules, f"{name}_module", raising=False)

    yield add
    forget_plugins()


def test_an_entry_point_may_be_a_family_or_a_function_that_returns_one(package: Install) -> None:
    package("one", LINE.format(**NAMES))
    package("two", LINE.format(**{name: f"other-{value}" for name, value in NAMES.items()}), value="family")
    assert {"line", "other-line"} <= set(TASKS)
    assert DATASETS["other-line-v0"].task == "other-line"


@pytest.mark.parametrize(
    ("code", "value", "reason"),
    [
        ("import nothing_of_that_name", "FAMILY", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("", "FAMILY", "AttributeError: module 'broken_module' has no attribute 'FAMILY'"),
        ("FAMILY = 'hopper'", "FAMILY", "TypeError: it gives a str, not a TaskFamily"),
        ("from dmray.tasks import TaskFamily\nFAMILY = TaskFamily(())", "FAMILY", "needs at least one task"),
    ],
)
def test_a_broken_package_is_named_once_and_the_others_are_used(
    package: Install, caplog: pytest.LogCaptureFixture, code: str, value: str, reason: str
) -> None:
    package("fine", LINE.format(**NAMES))
    package("broken", code, value)
    with caplog.at_level(logging.WARNING):
        assert {"line", "hopper"} <= set(TASKS)
        assert "line-v0" in DATASETS
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(
        "entry point 'broken_point = broken_module:FAMILY' of package 'broken 1.2' is ignored (group 'dmray.tasks'): "
    )
    assert reason in warning


@pytest.mark.parametrize(
    ("changes", "value", "what"),
    [
        ({"task": "hopper"}, "FAMILY", "task 'hopper'"),
        ({"dataset": "hopper-medium-v2"}, "FAMILY", "data set 'hopper-medium-v2'"),
        ({"dataset": "antmaze-umaze-v0"}, "FAMILY", "data set 'antmaze-umaze-v0'"),
        ({"family": "ant", "protocol": "minari"}, "FAMILY", "the family 'ant' of protocol 'minari'"),
    ],
)
def test_a_name_of_dmrays_own_is_an_error_that_names_both(
    package: Install, changes: dict[str, str], value: str, what: str
) -> None:
    package("clashing", LINE.format(**NAMES | changes), value)
    with pytest.raises(PluginError) as error:
        list(TASKS)
    origin = "entry point 'clashing_point = clashing_module:FAMILY' of package 'clashing 1.2'"
    assert str(error.value).startswith(f"{origin} and dmray both define {what};")
    assert TASKS["walker2d"].name == "walker2d", "a name of dmray's own is found without loading other packages"


def test_two_packages_with_the_same_engine_of_their_own_are_an_error_that_names_both(package: Install) -> None:
    package("one", LINE.format(**NAMES), "SIMULATED")
    others = {name: f"other-{value}" for name, value in NAMES.items()}
    package("two", LINE.format(**others | {"engine": "line"}), "SIMULATED")
    with pytest.raises(PluginError, match=r"two_module.*and entry point 'one_point.*the simulator of engine 'line'"):
        list(TASKS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ()}, "at least one task"),
        ({"tasks": (TASKS["hopper"], TASKS["ant"])}, "'hopper' and 'ant' of one family must share family, protocol"),
        ({"tasks": (replace(TASKS["hopper"], observation_dim=4),)}, "observation_parts have 11 numbers"),
        ({"datasets": (DatasetEntry("x", "ant", "y"),)}, "data set 'x': its task 'ant' is not one of hopper"),
        ({"calibration_task": "ant"}, "calibration_task 'ant' is not one of hopper"),
        ({"behaviours": ("random",)}, "leave it out of behaviours"),
    ],
)
def test_a_family_that_contradicts_itself_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        replace(FAMILIES["d4rl-mujoco", "hopper"], **change)  # type: ignore[arg-type]


def test_planning_with_dmrays_own_tasks_loads_neither_numpy_nor_other_packages(toy_plugin: None) -> None:
    code = """
import sys
from dmray.specs import DatasetSpec
from dmray.tasks import task_of
task_of(DatasetSpec(name="hopper-medium-v2"))
print({"numpy", "torch", "dmray_toy"} & set(sys.modules))
task_of(DatasetSpec(name="mine", task="toy-line", path="x"))
print({"numpy", "torch", "dmray_toy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "set()\n{'dmray_toy'}\n"


def test_a_family_stands_for_its_engine_by_its_first_task_unless_it_names_another() -> None:
    assert FAMILIES["d4rl-mujoco", "maze2d"].task_to_calibrate.name == "maze2d-umaze"
    assert FAMILIES["d4rl-mujoco", "kitchen"].task_to_calibrate.name == "kitchen-complete"


def test_families_are_values() -> None:
    first = FAMILIES["d4rl-mujoco", "hopper"]
    same = TaskFamily(
        first.tasks,
        first.datasets,
        behaviours=first.behaviours,
        simulator_packages=first.simulator_packages,
        data_license=first.data_license,
    )
    assert same == first
