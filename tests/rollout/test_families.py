"""The two halves of each built-in family fit, and nothing else in dmray lists families or engines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import pytest

import dmray
from dmray.errors import EngineError
from dmray.rollout import make_reference_engine, simulator_of, simulator_registry, simulators
from dmray.rollout.engine import PlaceableEngine
from dmray.tasks.registry import BUILT_IN

PACKAGE = Path(dmray.__file__).parent
HOMES = (PACKAGE / "tasks" / "families", PACKAGE / "rollout" / "simulators")
ENGINES = {module.name for module in iter_modules(simulators.__path__)}
NAMES = ENGINES | {family.name for family in BUILT_IN} | {family.engine for family in BUILT_IN}
NAMES |= {task.name for family in BUILT_IN for task in family.tasks}
# Where such a word means something else.
ALLOWED = {
    "records/provenance.py": {"envpool", "gymnasium"},  # packages whose versions are recorded
    "reporting/render.py": {"envpool"},  # a package
    "cli/program.py": {"envpool"},  # a package
    "driver/diagnosis.py": {"envpool", "gymnasium", "maze2d-open"},  # packages; the task that a picture is drawn of
    "planning/measuring.py": {"hopper", "maze2d-open"},  # the tasks whose sizes networks are measured with
}


def literals(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_other_file_names_a_family_an_engine_or_a_task() -> None:
    found = {}
    for file in PACKAGE.rglob("*.py"):
        if not file.is_relative_to(HOMES[0]) and not file.is_relative_to(HOMES[1]):
            place = file.relative_to(PACKAGE).as_posix()
            named = set(literals(file)) & NAMES - ALLOWED.get(place, set())
            if named:
                found[place] = named
    assert found == {}


@pytest.mark.parametrize("family", BUILT_IN, ids=lambda family: f"{family.protocol}/{family.name}")
def test_the_simulator_records_what_the_family_says(family) -> None:  # type: ignore[no-untyped-def]
    assert set(simulator_of(family.tasks[0]).recorders) >= set(family.behaviours)


@pytest.mark.parametrize("family", BUILT_IN, ids=lambda family: f"{family.protocol}/{family.name}")
def test_recorded_files_can_be_replayed_in_all_but_kitchen_and_bullet(family) -> None:  # type: ignore[no-untyped-def]
    if family.optional_packages:
        pytest.skip("needs packages that dmray does not require")
    engine = make_reference_engine(family.tasks[0], 1)
    assert isinstance(engine, PlaceableEngine) == (family.engine != "kitchen")
    engine.close()


@pytest.mark.parametrize("family", BUILT_IN, ids=lambda family: f"{family.protocol}/{family.name}")
def test_a_film_has_a_position_for_every_joint_of_its_model(family) -> None:  # type: ignore[no-untyped-def]
    simulator, task = simulator_of(family.tasks[0]), family.tasks[0]
    if simulator.scene is None:
        assert family.engine == "bullet"
        return
    scene = simulator.scene(task, np.zeros((3, task.observation_dim)))
    assert scene.positions.shape == (3, scene.model.nq)
    assert 0.005 < scene.step_s <= 0.1


def test_a_family_that_gives_no_simulator_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    family = replace(BUILT_IN[0], simulator=lambda: "nothing")
    task = family.tasks[0]
    monkeypatch.setattr(simulator_registry, "FAMILIES", {(family.protocol, family.name): family})
    with pytest.raises(EngineError, match=r"is a str, not a dmray\.rollout\.Simulator"):
        simulator_of(task)
