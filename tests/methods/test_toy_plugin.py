"""A method and a backbone of another package, named in a sweep file: planned, trained, evaluated, reported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dmray.methods import METHODS
from dmray.models import BACKBONES
from dmray.records import SweepFolder
from dmray.testing.backbone_contract import BackboneContract

pytestmark = pytest.mark.usefixtures("toy_plugin")
SWEEP = {
    "name": "toys",
    "datasets": [{"name": "homing", "task": "toy-line", "generate": {"behaviour": "homing", "transitions": 300}}],
    "grid": [
        {"methods": ["toy"], "models": [{"d_model": 8, "n_layer": 1, "context_length": 4, "decay": 0.25}]},
        {"methods": ["bc", "dlstm"], "models": [{"d_model": 8, "n_layer": 1, "context_length": 4}]},
    ],
    "seeds": [0, 1],
    "training": {"steps": 30, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
    "evaluation": {"episodes": 4, "every_steps": 15, "decode": "recurrent"},
}


class TestToyBackbone(BackboneContract):
    @pytest.fixture(autouse=True)
    def _backbone(self, toy_plugin: None) -> None:
        type(self).backbone = BACKBONES["toy-average"]


def test_it_is_listed_beside_dmrays_own() -> None:
    assert METHODS["toy"] in METHODS.values()
    assert METHODS["toy"].backbone is BACKBONES["toy-average"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> tuple[SweepFolder, str]:
    """The folder of a finished sweep, run by the command line in a process of its own, and what it printed."""
    storage = tmp_path_factory.mktemp("toys")
    (storage / "toys.yaml").write_text(yaml.safe_dump({**SWEEP, "storage": str(storage / "runs")}))
    command = [sys.executable, "-m", "dmray.sweep", str(storage / "toys.yaml"), "--local"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{toy_site}:{Path(__file__).parents[2]}")
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return SweepFolder(storage / "runs", "toys"), done.stdout


def test_the_terminal_and_the_report_call_it_by_its_label(swept: tuple[SweepFolder, str]) -> None:
    folder, printed = swept
    report = (folder.report / "report.md").read_text()
    for text in (printed, report):
        assert "Toy" in text
        assert "DLSTM" in text
    assert "Toy over BC" in report, "its baseline"


def test_figures_draw_it_in_its_colour(swept: tuple[SweepFolder, str]) -> None:
    drawn = "".join(path.read_text().lower() for path in swept[0].report.rglob("*.svg"))
    for method in ("toy", "bc", "dlstm"):
        assert METHODS[method].colour.lower() in drawn, method


def test_csv_files_have_the_fields_of_every_config(swept: tuple[SweepFolder, str]) -> None:
    trials = pd.read_csv(next(swept[0].report.rglob("trials.csv")))
    assert trials.groupby("method").decay.apply(lambda column: column.isna().all()).to_dict() == {
        "bc": True,
        "dlstm": True,
        "toy": False,
    }


@pytest.mark.filterwarnings("default")  # MLflow's dependencies warn about each other
def test_mlflow_has_its_label_and_its_config(swept: tuple[SweepFolder, str]) -> None:
    folder, _ = swept
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder.mlflow_database}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "dmray/toys"]
    runs = client.search_runs([experiment.experiment_id], "params.method = 'toy' and params.seed = '1'")
    assert [(run.data.params["model"], run.data.params["decay"]) for run in runs] == [("Toy", "0.25")]
    assert all(run.info.status == "FINISHED" for run in runs)
