"""A task family of another package, in everything that a task is used for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from dmray.cli.data import app
from dmray.driver.diagnosis import diagnose
from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import run_sweep
from dmray.errors import EngineError, SpecError
from dmray.progress.trial_status import TrialStatus
from dmray.records import SweepFolder
from dmray.reporting import write_report
from dmray.rollout import replay_errors
from dmray.rollout.film import Clip, write_films
from dmray.sources import open_dataset
from dmray.specs import DatasetSpec, Generation
from dmray.tasks import FAMILIES, PROTOCOLS, TASKS, task_of
from dmray.testing.engine_contract import EngineContract
from tests.plugins import TOY
from tests.sweeps import tiny_plan

pytestmark = pytest.mark.usefixtures("toy_plugin")
MADE = DatasetSpec(name="homing", task="toy-line", generate=Generation(behaviour="homing", transitions=200))


class TestToyEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def _task(self, toy_plugin: None) -> None:
        type(self).task = TASKS["toy-line"]


def test_its_task_family_and_protocol_are_listed() -> None:
    assert TASKS["toy-line"] in TASKS.values()
    assert FAMILIES["toy", "toy"].tasks == (TASKS["toy-line"],)
    assert "toy" in PROTOCOLS


def test_data_list_shows_it_here_and_in_a_new_process() -> None:
    shown = CliRunner().invoke(app, ["list", "toy-*"]).output.splitlines()[1:]
    assert [line.split()[:6] for line in shown[:-1]] == [["toy-line", "toy", "toy:", "line", "1", "20"]]
    assert shown[-1] == "toy: data make --behaviour random | homing"
    command = [sys.executable, "-m", "dmray.data", "list", "--protocol", "toy"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "toy-line" in done.stdout


@pytest.mark.parametrize("behaviour", ["random", "homing"])
def test_its_data_are_made_and_verified(behaviour: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.hdf5"
    options = ["--task", "toy-line", "--behaviour", behaviour, "--transitions", "100", "--out", str(path)]
    made = CliRunner().invoke(app, ["make", *options])
    assert made.exit_code == 0, made.output
    verified = CliRunner().invoke(app, ["verify", str(path), "--task", "toy-line"])
    assert verified.exit_code == 0, verified.output
    assert "100 transitions" in verified.output


def test_a_sweep_generates_its_data(tmp_path: Path) -> None:
    opened = open_dataset(MADE, task_of(MADE), tmp_path)
    assert opened.task == TASKS["toy-line"]
    assert opened.episodes.lengths.tolist() == [20] * 10
    assert opened.episodes.returns().mean() > 10, "homing is paid most of the time"
    assert replay_errors(opened.task, opened.episodes, steps=10).max() < 1e-6


def test_a_wrong_behaviour_is_refused_with_the_nearest() -> None:
    wrong = MADE.model_copy(update={"generate": Generation(behaviour="homming")})
    with pytest.raises(SpecError, match="unknown behaviour 'homming', did you mean 'homing'"):
        task_of(wrong)


def test_a_sweep_records_trains_evaluates_and_reports(tmp_path: Path) -> None:
    evaluation = {"episodes": 4, "every_steps": 20, "cohort_size": 2}
    plan = tiny_plan(tmp_path, datasets=[MADE.model_dump(mode="json")], evaluation=evaluation)
    folder = SweepFolder(tmp_path, "tiny")
    states = run_sweep(
        plan,
        folder,
        LocalRunner(),
        lambda sweep: write_report(sweep).folder,
        resume=False,
        console=Console(quiet=True),
    )
    assert set(states.values()) == {TrialStatus.FINISHED}
    assert "homing (made-toy, " in (folder.report / "report.md").read_text()


def test_what_its_simulator_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="toy-line: episodes of the engine 'toy' cannot be drawn"):
        write_films(TASKS["toy-line"], [Clip(np.zeros((3, 1)))], [tmp_path / "x.mp4"])


def test_the_doctor_tries_its_simulator(tmp_path: Path) -> None:
    found = next(finding for finding in diagnose(tmp_path, None) if finding.name == "simulator toy")
    assert (found.status, found.detail) == ("ok", "toy")


def test_the_examples_of_the_documentation_are_the_plugins_code() -> None:
    block_of_a_file = re.compile(r"```(?:python|toml)\n# (dmray_toy/\S+|pyproject\.toml)\n(.*?)```", re.DOTALL)
    documents = (Path(__file__).parents[2] / "docs").glob("extending*.md")
    blocks = [block for document in documents for block in block_of_a_file.findall(document.read_text())]
    assert {"dmray_toy/tasks.py", "dmray_toy/simulator.py", "dmray_toy/methods.py", "pyproject.toml"} <= {
        file for file, _ in blocks
    }
    for file, code in blocks:
        assert code in (TOY / file).read_text(), f"{file}: the documentation shows other code"
