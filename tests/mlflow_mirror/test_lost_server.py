"""A sweep whose MLflow server dies in the middle, and what is on the server when it is filled in afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from dmray.cli.track import app
from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import run_sweep
from dmray.errors import TrackingError
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.mlflow_mirror.store import LateStore, RunStore
from dmray.planning.manifest import write_manifest
from dmray.planning.plan import Plan
from dmray.progress.trial_status import TrialStatus
from dmray.records import EvaluationDone, SweepFolder, TrainProgress, read_ledger
from dmray.specs import TrialSpec
from tests.mlflow_mirror.fake_store import FakeStore
from tests.mlflow_mirror.mlflow_server import Server, free_port, points_of_trials
from tests.sweeps import tiny_plan

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's dependencies warn about each other


ONE_TRIAL = [{"methods": ["dm"], "models": [{"d_model": 16, "n_layer": 1, "context_length": 4}]}]


class _KillsServer:
    """Runs the first trial with the server, the others without."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def run(
        self, plan: Plan, todo: Sequence[TrialSpec], folder: SweepFolder, refresh: Callable[[], None]
    ) -> list[TrialSpec]:
        LocalRunner().run(plan, todo[:1], folder)
        self._server.stop()
        return LocalRunner().run(plan, todo[1:], folder)


@dataclass(frozen=True)
class Swept:
    """A sweep that ended without its server, and what it said."""

    folder: SweepFolder
    plan: Plan
    states: dict[str, TrialStatus]
    said: str
    uri: str
    filled_in: Result


def track(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def swept(session_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    if not session_server.runs:
        session_server.start()
    storage, log = tmp_path_factory.mktemp("lost"), StringIO()
    plan = tiny_plan(storage, name="lost", tracking={"mlflow_uri": session_server.uri, "log_every_steps": 10})
    folder = SweepFolder(storage, "lost")
    handler, logger = logging.StreamHandler(log), logging.getLogger("dmray")
    logger.addHandler(handler)
    try:
        states = run_sweep(
            plan, folder, _KillsServer(session_server), _report, resume=False, console=Console(file=StringIO())
        )
    finally:
        logger.removeHandler(handler)
    session_server.start()
    return Swept(folder, plan, states, log.getvalue(), session_server.uri, track("champions", folder.path))


def test_a_start_without_a_server_leaves_no_record_of_its_address(tmp_path: Path) -> None:
    """A replay asks the sweep's records where its MLflow is."""
    plan = tiny_plan(tmp_path, tracking={"mlflow_uri": "http://127.0.0.1:9"})
    folder = SweepFolder(tmp_path, "tiny")
    with pytest.raises(TrackingError, match=r"no MLflow server answers at http://127\.0\.0\.1:9"):
        run_sweep(plan, folder, LocalRunner(), _report, resume=False, console=Console(file=StringIO()))
    assert not folder.manifest.exists()


def test_a_sweep_that_was_started_continues_without_its_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MLflow and the driver were killed together, and the driver is back first."""
    folder, uri = SweepFolder(tmp_path, "tiny"), f"http://127.0.0.1:{free_port()}"
    plan = tiny_plan(tmp_path, tracking={"mlflow_uri": uri}, grid=ONE_TRIAL)
    write_manifest(plan, folder)
    statuses = run_sweep(plan, folder, LocalRunner(), _report, resume=True, console=None)
    assert set(statuses.values()) == {TrialStatus.FINISHED}
    assert "The sweep continues; MLflow gets its records when the server answers" in caplog.text
    assert f"python -m dmray.track replay {folder.path}" in caplog.text


def test_a_late_server_gets_the_records_when_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, store = SweepFolder(tmp_path, "tiny"), FakeStore()
    plan = tiny_plan(tmp_path, grid=ONE_TRIAL)
    LocalRunner().run(plan, plan.trials, folder)
    late = LateStore("http://127.0.0.1:9", folder)
    mirror = MlflowMirror(cast(RunStore, late), folder, plan.sweep, plan.trials)
    assert not mirror.advance()
    assert "no MLflow server answers" in str(mirror.lag.problem)
    monkeypatch.setattr("dmray.mlflow_mirror.store.open_store", lambda uri, folder: store)
    assert mirror.close().problem is None
    assert len(store.level("trial")) == 1


def _report(folder: SweepFolder) -> Path:
    folder.report.mkdir(exist_ok=True)
    return folder.report


@pytest.fixture
def client(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", swept.uri)
    import mlflow

    return mlflow.MlflowClient()


def runs_of(client: Any, filter_string: str) -> list[Any]:
    experiment = client.get_experiment_by_name("dmray/lost").experiment_id
    found: list[Any] = client.search_runs([experiment], filter_string)
    return found


def test_the_sweep_ends_well_and_says_how_to_fill_mlflow_in(swept: Swept) -> None:
    assert set(swept.states.values()) == {TrialStatus.FINISHED}
    assert "training goes on, they follow later" in swept.said
    assert f"--resume adds them, or: python -m dmray.track replay {swept.folder.path}" in swept.said


def test_every_point_is_there_once_afterwards_and_a_second_replay_adds_none(swept: Swept) -> None:
    assert swept.filled_in.exit_code == 0, swept.filled_in.output
    assert track("replay", swept.folder.path).exit_code == 0
    found = points_of_trials(swept.uri, "dmray/lost")
    for trial in swept.plan.trials:
        (run,) = [run for name, run in found.items() if name.startswith(f"trial {trial.method.upper()}|")]
        records = read_ledger(swept.folder.trial(trial.trial_id).ledger)
        losses = [(record.step, record.loss) for record in records if isinstance(record, TrainProgress)]
        scores = [
            (each.step, each.first_target.normalized_mean) for each in records if isinstance(each, EvaluationDone)
        ]
        assert run["status"] == "FINISHED"
        assert run["metrics"]["train/loss"] == losses
        assert run["metrics"]["eval/normalized_score"] == scores


def test_a_best_policy_is_loaded_from_the_registry_and_acts(swept: Swept, client: Any) -> None:
    import mlflow

    place = "models:/dmray-dt-maze2d@open-expert"
    assert place in swept.filled_in.output
    model = mlflow.pyfunc.load_model(place)
    window = {"observations": (1, 3, 4), "actions": (1, 3, 2), "returns_to_go": (1, 3)}
    actions = model.predict({name: np.zeros(shape, np.float32) for name, shape in window.items()})
    assert actions.shape == (1, 2)
    with pytest.raises(mlflow.exceptions.MlflowException, match="observations"):
        model.predict({name: np.zeros((1, 3, 9), np.float32) for name in window})
    version = client.get_model_version_by_alias("dmray-dt-maze2d", "open-expert")
    assert version.tags["dmray.trial_key"] in {trial.trial_id for trial in swept.plan.trials}


def test_a_run_has_both_its_models_and_no_pickle_in_them(swept: Swept, client: Any) -> None:
    (run,) = runs_of(client, "tags.method = 'dm' and tags.`dmray.level` = 'trial'")
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert sorted(model.name for model in models) == ["best", "final"]
    for model in models:
        assert {metric.key for metric in model.metrics} >= {"eval/normalized_score"}
        assert sorted(each.path for each in client.list_logged_model_artifacts(model.model_id)) == [
            "MLmodel",
            "policy.pt",
        ]


def test_a_run_knows_its_data_set_and_how_busy_the_machine_was(swept: Swept, client: Any) -> None:
    (run,) = runs_of(client, "tags.method = 'dt' and tags.`dmray.level` = 'trial'")
    (used,) = [each.dataset for each in run.inputs.dataset_inputs]
    assert (used.name, run.data.tags["data.sha256"].startswith(used.digest)) == ("open-expert", True)
    assert '"transitions": 1500' in used.profile
    assert len(client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")) == 4


def test_the_sweeps_run_lasts_as_long_as_its_trials(swept: Swept, client: Any) -> None:
    (sweep,) = runs_of(client, "tags.`dmray.level` = 'sweep'")
    trials = runs_of(client, "tags.`dmray.level` = 'trial'")
    assert (sweep.info.status, sweep.info.end_time) == ("FINISHED", max(each.info.end_time for each in trials))
    assert sweep.info.start_time <= min(each.info.start_time for each in trials)


def test_a_folder_without_a_sweep_is_told(tmp_path: Path) -> None:
    done = track("replay", tmp_path)
    assert done.exit_code == 1
    assert "no sweep here" in done.output.replace("\n", " ")
