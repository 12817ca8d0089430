"""MLflow's own pages, in a browser: DM and DT stand against each other over their seeds."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from dmray.methods import METHODS
from dmray.mlflow_mirror.layout import view_link
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.records import SweepFolder
from tests.mlflow_mirror import browser
from tests.mlflow_mirror.examples import example_sweep, trials_of, whole_trial, write_ledger
from tests.mlflow_mirror.mlflow_server import Server

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's dependencies warn about each other


@pytest.fixture(scope="module")
def experiment(session_server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of a finished sweep's: DM scores 60 and 70, DT 30 and 50."""
    if browser.missing():
        pytest.skip(str(browser.missing()))
    import mlflow

    if not session_server.runs:
        session_server.start()
    folder, sweep = SweepFolder(tmp_path_factory.mktemp("viewed"), "viewed"), example_sweep(name="viewed")
    scores = {("dm", 0): 60, ("dm", 1): 70, ("dt", 0): 30, ("dt", 1): 50}
    for trial in trials_of(sweep):
        write_ledger(folder, trial, whole_trial(20, scores[trial.method, trial.seed]))
    assert MlflowMirror.open(session_server.uri, folder, sweep, trials_of(sweep)).close().problem is None
    found: str = mlflow.MlflowClient(session_server.uri).get_experiment_by_name("dmray/viewed").experiment_id
    return found


def seen(url: str, profile: Path, *wanted: str) -> str:
    """The page's text, as soon as all of `wanted` is in it."""
    deadline = time.monotonic() + 120
    while True:
        text = re.sub(r"<[^>]*>", " ", browser.page(url, profile))
        absent = [each for each in wanted if not re.search(each, text)]
        if not absent:
            return text
        assert time.monotonic() < deadline, f"{url} does not show {absent}"


def test_the_linked_table_shows_seed_groups_with_their_means(server: Server, experiment: str, tmp_path: Path) -> None:
    shown = seen(view_link(server.uri, experiment, mode="TABLE"), tmp_path, r"DM\|hopper", r"DT\|hopper")
    assert "|s1" not in shown, "seeds are below their groups"
    assert re.search(r"in the colours of the report:\s+curves", shown)  # the experiment's description, with links
    assert re.search(r"\b65\b", shown)  # DM's mean last score
    assert re.search(r"\b40\b", shown)


def test_the_linked_charts_show_a_mean_curve_a_method(server: Server, experiment: str, tmp_path: Path) -> None:
    curves = (
        r"DM\|hopper-medium-v2 \(agg/normalized_score_2_seeds\)",
        r"DT\|hopper-medium-v2 \(agg/normalized_score_2_seeds\)",
    )
    seen(view_link(server.uri, experiment), tmp_path, *curves)


def test_runs_have_the_colours_of_their_methods(server: Server, experiment: str, tmp_path: Path) -> None:
    url, colours = view_link(server.uri, experiment, "seeds"), [METHODS[name].colour for name in ("dm", "dt")]
    wanted = [f"rgb\\({', '.join(str(int(each[at : at + 2], 16)) for at in (1, 3, 5))}\\)" for each in colours]
    deadline = time.monotonic() + 120
    while not all(re.search(each, browser.page(url, tmp_path)) for each in wanted):
        assert time.monotonic() < deadline, f"{url} does not show {wanted}"


def test_averages_over_seeds_are_by_data_set_and_method(server: Server, experiment: str, tmp_path: Path) -> None:
    group = r"dataset: hopper-medium-v2, model: D[MT]"
    seen(view_link(server.uri, experiment, "averages", "TABLE"), tmp_path, group)
