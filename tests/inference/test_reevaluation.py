"""The stored checkpoints of a whole sweep, evaluated again: kept, continued after a kill, and apart from all else."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

import dmray
from dmray.errors import SpecError, StorageError
from dmray.inference import evaluation_request, recorded_evaluation
from dmray.inference.evaluation import EvaluationChanges
from dmray.inference.reevaluation import plan_reevaluation
from dmray.inference.services import _InProcesses, _InThisProcess
from dmray.planning.manifest import read_manifest
from dmray.policies import PolicySnapshot
from dmray.records import Ledger, SweepFolder, TrialStopped, read_done_marker, read_reevaluations, write_done_marker
from dmray.reporting import collect
from dmray.rollout import EvaluationRequest
from dmray.trial.evaluation import EvaluationFuture, InlineEvaluation
from tests.progress.ledgers import OUT, begun, scored, started
from tests.sweeps import tiny_plan, tiny_sweep
from tests.trial.jobs import Killed

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's queries, not ours
SQLITE = {"log_every_steps": 10}
TWO_SEEDS = {"seeds": [0, 1], "training": {"steps": 20, "batch_size": 4, "warmup_steps": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A finished sweep with MLflow: DM and DT, two seeds."""
    sweep = tiny_sweep(tmp_path_factory.mktemp("runs"), tracking=SQLITE, **TWO_SEEDS)
    return dmray.run_sweep(sweep, local=True, progress=False).folders[0]


def ledgers(folder: SweepFolder) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.path.glob("trials/*/ledger.jsonl")}


class Counting(InlineEvaluation):
    """Counts the evaluations; dies at the one with number `killed_at`."""

    def __init__(self, killed_at: int = 0) -> None:
        self.count, self._killed_at = 0, killed_at

    def submit(self, snapshot: PolicySnapshot, request: EvaluationRequest) -> EvaluationFuture:
        self.count += 1
        if self.count == self._killed_at:
            raise Killed
        return super().submit(snapshot, request)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counting:
    service = Counting()
    monkeypatch.setattr("dmray.inference.services._InThisProcess", lambda deterministic: service)
    return service


def test_two_more_decode_modes_are_in_the_report_and_in_mlflow_without_a_training_step(folder: SweepFolder) -> None:
    before, scores = ledgers(folder), dmray.load_results(folder.path).scores
    for decode in ("stream:2", "recurrent"):
        made = dmray.evaluate_sweep(folder.path, decode=decode, local=True)
        assert (len(made.records), made.kept, made.failed, made.mlflow) == (4, 0, {}, None)
    assert ledgers(folder) == before, "nothing was trained, and no ledger has the evaluations"

    results = dmray.load_results(folder.path)
    assert results.scores.equals(scores), "no mean of the training's evaluations has them"
    again = [(str(each.protocol), len(each.seed_groups)) for each in results.collected.reevaluated]
    assert [(text.partition("evaluated again")[2], groups) for text, groups in again] == [(": checkpoint final", 2)] * 2
    assert sorted({each.protocol.decode for each in results.collected.reevaluated}) == ["recurrent", "stream:2"]
    rows = results.reevaluations
    assert len(rows) == 8
    direct = dmray.evaluate_policy(folder.trial(rows.trial_id[0]).path, decode=rows.decode[0])
    assert direct.normalized == rows.normalized_score[0]
    report = (folder.report / "report.md").read_text()
    assert "Evaluated again after training" in report
    assert "decode stream:2, 4 episodes, evaluation seed 0; evaluated again: checkpoint final" in report

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder.mlflow_database}")
    [experiment] = [each for each in client.search_experiments() if each.name == "dmray/tiny"]
    runs = client.search_runs([experiment.experiment_id], "tags.`dmray.level` = 're-evaluation'")
    trials = client.search_runs([experiment.experiment_id], "tags.`dmray.level` = 'trial'")
    assert len(runs) == 8
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["protocol.decode"] for run in runs} == {"stream:2", "recurrent"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {run.info.run_id for run in trials}
    shown = sorted(round(run.data.metrics["eval/normalized_score"], 9) for run in runs)
    assert shown == sorted(rows.normalized_score.round(9))


def test_a_result_that_is_there_is_kept_and_a_killed_command_continues(
    folder: SweepFolder, counted: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"episodes": 2, "seed": 7, "local": True, "mlflow_uri": "off"}
    dying = Counting(killed_at=3)
    monkeypatch.setattr("dmray.inference.services._InThisProcess", lambda deterministic: dying)
    with pytest.raises(Killed):
        dmray.evaluate_sweep(folder.path, **settings)  # type: ignore[arg-type]
    monkeypatch.setattr("dmray.inference.services._InThisProcess", lambda deterministic: counted)
    made = dmray.evaluate_sweep(folder.path, **settings)  # type: ignore[arg-type]
    assert (made.kept, counted.count, len(made.records)) == (2, 2, 4)
    damaged = next(folder.reevaluations.glob("*/*.json"))
    whole = damaged.read_bytes()
    again = dmray.evaluate_sweep(folder.path, **settings)  # type: ignore[arg-type]
    assert (again.kept, counted.count) == (4, 2)
    assert again.table.equals(made.table)
    damaged.write_bytes(whole[:100])
    assert dmray.load_results(folder.path).reevaluations is not None, "a damaged file hides nothing else"
    damaged.write_bytes(whole)


def test_checkpoints_and_trials_are_selected(folder: SweepFolder, counted: Counting) -> None:
    made = dmray.evaluate_sweep(
        folder.path, checkpoint="all", only="method=dm,seed=1", episodes=3, local=True, mlflow_uri="off"
    )
    assert made.table.checkpoint.tolist() == ["best", "final"]
    assert counted.count == 2


def test_settings_that_change_last_bits_are_never_in_one_mean(folder: SweepFolder, counted: Counting) -> None:
    for deterministic in (False, True):
        dmray.evaluate_sweep(folder.path, seed=21, deterministic=deterministic, local=True, mlflow_uri="off")
    assert counted.count == 8
    found = [each for each in collect(folder).reevaluated if each.protocol.seed == 21]
    assert [each.protocol.reevaluated for each in found] == ["final", "final (deterministic)"]
    assert [[len(group.trials) for group in each.seed_groups] for each in found] == [[2, 2], [2, 2]]


def test_processes_share_cohorts_and_change_nothing(folder: SweepFolder) -> None:
    policy = dmray.load_policy(next(iter(sorted((folder.path / "trials").iterdir()))))
    request = evaluation_request(policy, episodes=3, cohort_size=1)
    with ThreadPoolExecutor(2) as threads:  # in place of processes
        shared = _InProcesses(threads, False).submit(policy.snapshot, request).result(60)
        failed = _InProcesses(threads, False).submit(policy.snapshot, replace(request, decode="odd"))
        with pytest.raises(SpecError, match="unknown decode mode 'odd'"):
            failed.result(60)
    assert shared == _InThisProcess(False).submit(policy.snapshot, request).result(0)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"checkpoint": "bets"}, SpecError, "checkpoint 'bets': give one of final, best, all"),
        ({"checkpoint": "step:10"}, StorageError, "no checkpoint step:10; it has best, final"),
        ({"decode": "strem:2"}, SpecError, "did you mean 'stream:2'"),
        ({"decode": "stream:9"}, SpecError, "takes at most context_length"),
        ({"only": "method=dm", "target_returns": [5.0]}, SpecError, r"no trial takes a target return \(dm\)"),
        ({"only": "method=hdt"}, SpecError, "--only"),
        ({"workers": 2}, SpecError, "local and workers: these are different places"),
    ],
)
def test_a_setting_that_cannot_take_effect_is_refused_before_anything_runs(
    folder: SweepFolder, counted: Counting, settings: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dmray.evaluate_sweep(folder.path, local=True, **settings)  # type: ignore[arg-type]
    assert counted.count == 0


def test_results_of_weights_that_an_earlier_training_made_do_not_count(folder: SweepFolder, tmp_path: Path) -> None:
    dmray.evaluate_sweep(folder.path, local=True, seed=5, only="method=dm,seed=0", mlflow_uri="off")
    shutil.copytree(folder.path, tmp_path / "tiny")
    copied = SweepFolder(tmp_path, "tiny")
    [trial_id] = [path.name for path in (copied.path / "trials").iterdir() if "-dm-s0-" in path.name]
    trial, number = copied.trial(trial_id), len(read_reevaluations(copied, trial_id))
    assert number > 0
    marker = read_done_marker(trial)
    assert marker is not None
    Ledger(trial.ledger).append(marker.end)
    write_done_marker(trial, trial_id, marker.end)
    assert read_reevaluations(copied, trial_id) == []


def test_a_seed_without_the_evaluation_is_counted_as_missing(folder: SweepFolder) -> None:
    dmray.evaluate_sweep(folder.path, local=True, seed=11, mlflow_uri="off")
    results = collect(folder)
    whole = next(each for each in results.reevaluated if each.protocol.seed == 11)
    assert [len(group.scored) for group in whole.seed_groups] == [2, 2]
    [trial] = [each for each in read_manifest(folder).trials if (each.method, each.seed) == ("dm", 1)]
    for path in (folder.reevaluations / trial.trial_id).glob("*.json"):
        path.unlink()
    part = next(each for each in collect(folder).reevaluated if each.protocol.seed == 11)
    assert [(len(group.scored), len(group.trials)) for group in part.seed_groups] == [(1, 2), (2, 2)]


def test_a_sweep_in_an_object_store_keeps_its_results_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, counted: Counting
) -> None:
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "first"))
    storage = f"memory://{uuid4().hex[:8]}/runs"
    dmray.run_sweep(tiny_sweep(storage, **TWO_SEEDS | {"seeds": [0]}), local=True, progress=False)
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "second"))
    dmray.evaluate_sweep(f"{storage}/tiny", local=True, decode="recurrent", checkpoint="best")
    monkeypatch.setenv("DMRAY_CACHE", str(tmp_path / "third"))
    again = dmray.evaluate_sweep(f"{storage}/tiny", local=True, decode="recurrent", checkpoint="best")
    assert (again.kept, counted.count) == (2, 2)
    assert len(dmray.load_results(f"{storage}/tiny").reevaluations) == 2


def test_a_checkpoint_that_cannot_be_read_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    folder = dmray.run_sweep(tiny_sweep(tmp_path, **TWO_SEEDS | {"seeds": [0]}), local=True, progress=False).folders[0]
    broken = next(iter(sorted(folder.path.glob("trials/*/checkpoints/final.pt"))))
    broken.write_bytes(broken.read_bytes()[:-1])
    made = dmray.evaluate_sweep(folder.path, local=True, seed=1)
    [why] = made.failed.values()
    assert "final.pt: not a dmray checkpoint as it was written" in why
    assert len(made.records) == 1


def test_a_trial_that_was_stopped_early_is_left_out_and_called_so(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, early_stopping={"grace_steps": 20, "reduction_factor": 2, "within": "dataset"})
    decision = OUT.model_copy(update={"within": "dataset"})
    stopped = TrialStopped(time_s=2.0, attempt=1, step=20, decision=decision)
    _, folder = begun(tmp_path, [started(), scored(20, 3.0), decision, stopped])
    planned = plan_reevaluation(folder, plan.trials[:1], "final", EvaluationChanges(), plan.sweep)
    assert planned.left_out == (f"{plan.trial_ids[0]}: has not finished (stopped early)",)


def test_selection_trials_of_a_search_are_left_out(tmp_path: Path) -> None:
    plan = tiny_plan(
        tmp_path,
        training={"steps": 40, "learning_rate": [1e-3, 1e-2]},
        search={"algorithm": "grid", "seeds": [100]},
    )
    planned = plan_reevaluation(SweepFolder(tmp_path, "tiny"), plan.trials, "final", EvaluationChanges(), plan.sweep)
    assert planned.left_out == ("4 selection trials of the search, which are in no comparison",)


def test_noise_is_a_protocol_of_its_own_and_the_same_from_a_sweep_and_from_a_policy(folder: SweepFolder) -> None:
    made = dmray.evaluate_sweep(folder.path, only="method=dm", action_noise=0.5, observation_noise=0.25, local=True)
    assert {(each.conditions.action_noise, each.conditions.observation_noise) for each in made.records} == {(0.5, 0.25)}
    clean = dmray.evaluate_sweep(folder.path, only="method=dm", local=True)
    assert not {each.conditions.digest for each in clean.records} & {each.conditions.digest for each in made.records}
    record = made.records[0]
    policy = dmray.load_policy(folder.trial(record.trial_id).path)
    alone = dmray.evaluate_policy(policy, action_noise=0.5, observation_noise=0.25)
    assert alone.scores == record.targets
    assert alone.about["action_noise"] == "0.5"
    assert recorded_evaluation(policy, alone.request) is None, "the sweep's evaluation had no noise"
    names = {str(each.protocol) for each in collect(folder).reevaluated}
    assert any("action noise 0.5, observation noise 0.25; evaluated again" in name for name in names)
    assert any("noise" not in name for name in names)
    rows = dmray.load_results(folder.path).reevaluations
    assert {0.0, 0.5} <= set(rows.action_noise)


def test_noise_whose_unit_is_not_known_is_refused(folder: SweepFolder) -> None:
    policy = dmray.load_policy(folder.trial(read_manifest(folder).trial_ids[0]).path)
    assert policy.action_std is not None
    assert all(each > 0 for each in policy.action_std)
    older = replace(policy, action_std=None)
    with pytest.raises(SpecError, match=r"action_noise 0\.1: the deviation of the actions .* is not stored"):
        evaluation_request(older, action_noise=0.1)
    assert evaluation_request(older, observation_noise=0.1).noise is not None
    with pytest.raises(SpecError, match="a function has none"):
        evaluation_request(lambda observations: observations[:, :2], "maze2d-open", observation_noise=0.1)
    with pytest.raises(SpecError, match=r"observation_noise -1: must be from 0 to 1000"):
        evaluation_request(policy, observation_noise=-1)


def test_a_sweeps_noise_is_in_its_evaluations_and_can_be_repeated_or_left_out(tmp_path: Path) -> None:
    noisy = {"episodes": 2, "every_steps": 20, "target_returns": [50.0], "action_noise": 2.0, "observation_noise": 1.0}
    changes = {"grid": [{"methods": ["dm"], "models": [{"d_model": 8, "n_layer": 1, "context_length": 4}]}]}
    sweep = tiny_sweep(tmp_path, evaluation=noisy, **changes, training={"steps": 20, "batch_size": 4})
    results = dmray.run_sweep(sweep, local=True, progress=False)
    assert results.succeeded, results.errors
    (comparison,) = results.comparisons
    assert "action noise 2, observation noise 1" in str(comparison.protocol)
    policy = dmray.load_policy(results.trial_folder(results.trials.trial_id[0]))
    again = dmray.evaluate_policy(policy)
    record = recorded_evaluation(policy, again.request)
    assert record is not None
    assert record.targets == again.scores
    without = evaluation_request(policy, action_noise=0, observation_noise=0)
    assert without.noise is None
    assert recorded_evaluation(policy, without) is None
