from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dmray.errors import TrackingError, TrackingUnavailableError
from dmray.methods import METHODS
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.mlflow_mirror.store import POINTS_PER_BATCH, StoreError
from dmray.planning.plan import plan
from dmray.records import LedgerRecord, StartedOver, SweepFolder, write_done_marker
from dmray.reporting import write_report
from dmray.specs import SweepSpec
from tests.mlflow_mirror.examples import (
    T0,
    done,
    evaluated,
    example_sweep,
    failed,
    started,
    trained,
    trials_of,
    whole_trial,
    write_ledger,
    write_manifest,
)
from tests.mlflow_mirror.fake_store import FakeRun, FakeStore


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmray.mlflow_mirror.outage._LONGEST_PAUSE_S", 0.0)
    monkeypatch.setattr("dmray.mlflow_mirror.outage.time.sleep", lambda seconds: None)


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path, "example")


SWEEP = example_sweep()
TRIALS = trials_of(SWEEP)  # dm s0, dt s0, dm s1, dt s1


def mirror(store: FakeStore, folder: SweepFolder, sweep: SweepSpec = SWEEP) -> MlflowMirror:
    return MlflowMirror(store, folder, sweep, trials_of(sweep))


def write_all(folder: SweepFolder) -> None:
    """dm: 50, 60 (seed 0) and 70, 64 (seed 1); dt: failed once and then 30, 20; seed 1 still runs."""
    write_manifest(folder, SWEEP)
    write_ledger(folder, TRIALS[0], whole_trial(50, 60))
    write_ledger(folder, TRIALS[2], whole_trial(70, 64))
    again: list[LedgerRecord] = [started(2, 20), trained(20, 0.9), trained(40), evaluated(40, 20, 15), done(40)]
    write_ledger(folder, TRIALS[1], [started(), trained(20), evaluated(20, 30, 25), failed(30), *again])
    write_ledger(folder, TRIALS[3], [started(), trained(20)])


def assert_complete(store: FakeStore) -> None:
    """MLflow holds `write_all`, each point once."""
    assert len(store.runs) == 1 + 2 + 4
    for run in store.runs.values():
        places = [(point.key, point.step) for point in run.points]
        assert len(places) == len(set(places))
    dm, dt = store.by(**{"dmray.trial_key": TRIALS[0].trial_id}), store.by(**{"dmray.trial_key": TRIALS[1].trial_id})
    assert dm.history("eval/normalized_score") == [(20, 50.0), (40, 60.0)]
    assert dm.history("final/normalized_score") == [(40, 60.0)]
    assert sorted(dt.history("train/loss")) == [(20, 0.5), (40, 0.5)]
    assert dt.history("best/step") == [(40, 20.0)]
    assert dt.artifacts["error.txt"] == failed(30).traceback
    seed_group = store.by(**{"dmray.level": "seed group", "model": "DM"}).latest()
    assert seed_group["agg/n_seeds"] == 2
    assert seed_group["agg/normalized_score_last_mean"] == pytest.approx(62.0)
    assert seed_group["agg/normalized_score_last_std"] == pytest.approx(8**0.5)
    assert seed_group["agg/normalized_score_best_mean"] == pytest.approx(65.0)
    curves = {run.name: run.history("agg/normalized_score_2_seeds") for run in store.level("seed group")}
    assert curves == {"DM|hopper-medium-v2": [(20, 60.0), (40, 62.0)], "DT|hopper-medium-v2": []}
    colours = {
        run.tags["model"]: run.tags["mlflow.runColor"] for run in [*store.level("trial"), *store.level("seed group")]
    }
    assert colours == {METHODS[name].label: METHODS[name].colour for name in ("dm", "dt")}
    statuses = [store.by(**{"dmray.trial_key": trial.trial_id}).status for trial in TRIALS]
    assert statuses == ["FINISHED", "FINISHED", "FINISHED", "KILLED"]
    assert {run.name: run.status for run in store.level("seed group")} == {
        "DM|hopper-medium-v2": "FINISHED",
        "DT|hopper-medium-v2": "KILLED",
    }
    assert store.level("sweep")[0].status == "KILLED"


def test_runs_are_nested_sweep_seed_group_trial(folder: SweepFolder) -> None:
    store = FakeStore()
    write_all(folder)
    mirror(store, folder).advance()
    ids = {id(run): run_id for run_id, run in store.runs.items()}
    sweep = store.level("sweep")[0]
    assert [len(store.level(level)) for level in ("sweep", "seed group", "trial")] == [1, 2, 4]
    for seed_group in store.level("seed group"):
        assert seed_group.tags["mlflow.parentRunId"] == ids[id(sweep)]
    for trial in store.level("trial"):
        seed_group = store.by(**{"dmray.level": "seed group", "dmray.seed_group": trial.tags["dmray.seed_group"]})
        assert trial.tags["mlflow.parentRunId"] == ids[id(seed_group)]
        assert trial.tags["model"] == seed_group.tags["model"]


def test_a_sweep_is_mirrored_and_closed(folder: SweepFolder) -> None:
    store = FakeStore()
    write_all(folder)
    lag = mirror(store, folder).close()
    assert (lag.records, lag.problem) == (0, None)
    assert_complete(store)


def test_a_second_replay_adds_nothing(folder: SweepFolder) -> None:
    store = FakeStore()
    write_all(folder)
    mirror(store, folder).close()
    before = {run_id: list(run.points) for run_id, run in store.runs.items()}
    mirror(store, folder).close()
    assert {run_id: run.points for run_id, run in store.runs.items()} == before
    assert_complete(store)


def number_of_calls(tmp_path: Path) -> int:
    store, folder = FakeStore(), SweepFolder(tmp_path, "example")
    write_all(folder)
    mirror(store, folder).close()
    return store.calls


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("lost_answer", [False, True])
def test_whichever_call_fails_the_next_try_completes_it(tmp_path: Path, lost_answer: bool, refuses: bool) -> None:
    calls = number_of_calls(tmp_path / "count")
    assert calls > 30
    for fails_at in range(1, calls + 1):
        folder = SweepFolder(tmp_path / str(fails_at), "example")
        store = FakeStore(fails_at, lost_answer, refuses)
        write_all(folder)
        mirror(store, folder).close()
        assert_complete(store)


def test_whichever_call_the_driver_dies_at_the_next_driver_completes_it(tmp_path: Path) -> None:
    for fails_at in range(1, number_of_calls(tmp_path / "count") + 1):
        folder = SweepFolder(tmp_path / str(fails_at), "example")
        store = FakeStore(fails_at, lost_answer=True)
        write_all(folder)
        mirror(store, folder).advance()  # its one pass is cut short; the driver is never heard of again
        mirror(store, folder).close()
        assert_complete(store)


def test_records_follow_while_a_trial_runs(folder: SweepFolder) -> None:
    store = FakeStore()
    watching = mirror(store, folder)
    assert watching.advance()
    write_ledger(folder, TRIALS[0], [started(), trained(20)])
    assert watching.lag.records == 2
    watching.advance()
    run = store.by(**{"dmray.trial_key": TRIALS[0].trial_id})
    assert (run.status, run.history("train/loss")) == ("RUNNING", [(20, 0.5)])
    write_ledger(folder, TRIALS[0], [evaluated(20, 42, 40)])
    watching.advance()
    assert run.history("eval/normalized_score") == [(20, 42.0)]
    assert run.history("eval/target_1800/normalized_score") == [(20, 40.0)]
    assert watching.lag.records == 0


def test_an_outage_delays_and_loses_nothing(folder: SweepFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = FakeStore()
    watching = mirror(store, folder)
    watching.advance()
    store.down = True
    write_all(folder)
    assert not watching.advance()
    assert not watching.advance()
    assert watching.lag.records == 6 + 9 + 6 + 2
    assert watching.lag.problem == "connection refused"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    store.down = False
    assert watching.advance()
    assert watching.lag.problem is None
    watching.close()
    assert_complete(store)


def test_closing_without_a_server_says_what_is_missing(folder: SweepFolder, caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    store.down = True
    write_all(folder)
    lag = mirror(store, folder).close()
    assert lag.records == 23
    assert "MLflow lacks 23 records (connection refused); --resume adds them" in caplog.text


def test_one_run_that_is_refused_does_not_hold_up_the_others(folder: SweepFolder) -> None:
    write_all(folder)
    counting = FakeStore()
    mirror(counting, folder).advance()
    store = FakeStore(fails_at=6, refuses=True)  # within the first trial
    assert not mirror(store, folder).advance()
    assert store.by(**{"dmray.trial_key": TRIALS[2].trial_id}).history("final/normalized_score") == [(40, 64.0)]


def test_a_trial_that_a_dead_driver_left_is_killed_until_it_runs_again(folder: SweepFolder) -> None:
    store = FakeStore()
    write_ledger(folder, TRIALS[0], [started(), trained(20)])
    first = mirror(store, folder)
    first.advance()
    run = store.by(**{"dmray.trial_key": TRIALS[0].trial_id})
    assert run.status == "KILLED"
    write_ledger(folder, TRIALS[0], [started(2, 20)])
    first.advance()
    assert (run.status, run.tags["dmray.attempt"], run.tags["dmray.resumed_from_step"]) == ("RUNNING", "2", "20")


def test_a_failure_is_a_failed_run_with_its_traceback(folder: SweepFolder) -> None:
    store = FakeStore()
    write_ledger(folder, TRIALS[0], [started(), failed(5)])
    mirror(store, folder).close()
    run = store.by(**{"dmray.trial_key": TRIALS[0].trial_id})
    assert (run.status, run.end_ms) == ("FAILED", int((T0 + 5) * 1000))
    assert "disk full" in str(run.artifacts["error.txt"])
    assert run.tags["dmray.last_error"] == "OSError: disk full"
    assert store.level("sweep")[0].status == "FAILED"


def test_divergence_is_a_result_without_a_final_score(folder: SweepFolder) -> None:
    store = FakeStore()
    records: list[LedgerRecord] = [started(), evaluated(20, 30, 25), done(30, "diverged", 20)]
    write_ledger(folder, TRIALS[0], records)
    mirror(store, folder).advance()
    run = store.by(**{"dmray.trial_key": TRIALS[0].trial_id})
    assert (run.status, run.tags["dmray.status"]) == ("FINISHED", "diverged")
    assert run.history("final/normalized_score") == []
    assert run.history("best/normalized_score") == [(30, 30.0)]
    assert store.level("seed group")[0].points == []


def test_params_of_all_methods_differ_only_in_the_fields_of_their_configs(folder: SweepFolder) -> None:
    store = FakeStore()
    write_all(folder)
    mirror(store, folder).advance()
    keys = {run.params["method"]: set(run.params) for run in store.level("trial")}
    fields = {method: set(METHODS[method].config.model_fields) for method in keys}
    assert all(fields[method] <= keys[method] for method in keys)
    assert keys["dm"] - fields["dm"] == keys["dt"] - fields["dt"]
    assert {"model", "method", "dataset", "seed", "d_model", "steps", "eval_episodes", "protocol"} <= keys["dm"]
    dm = store.by(**{"dmray.trial_key": TRIALS[0].trial_id})
    assert (dm.params["model"], dm.params["d_model"], dm.params["eval_target_returns"]) == (
        "DM",
        "128",
        "[3600.0,1800.0]",
    )


def test_settings_of_a_method_have_labels_of_their_own(folder: SweepFolder) -> None:
    """MLflow's views average the trials that share a label."""
    sweep = example_sweep(training={"steps": 40, "learning_rate": [1e-4, 3e-4]}, seeds=[0])
    trials, store = plan(sweep).trials, FakeStore()
    for trial in trials:
        write_ledger(folder, trial, whole_trial(50))
    MlflowMirror(store, folder, sweep, trials).close()
    found = {
        (run.tags["model"], run.params["learning_rate"])
        for run in store.runs.values()
        if run.tags["dmray.level"] == "trial"
    }
    rates = {"1e-4": "0.0001", "3e-4": "0.0003"}
    assert found == {(f"{method} (learning_rate {shown})", rates[shown]) for method in ("DM", "DT") for shown in rates}


def test_more_seeds_later_continue_the_same_runs(folder: SweepFolder) -> None:
    store = FakeStore()
    write_all(folder)
    mirror(store, folder).close()
    more = example_sweep(seeds=[0, 1, 2])
    new = next(trial for trial in trials_of(more) if trial.seed == 2 and trial.method == "dm")
    write_ledger(folder, new, whole_trial(10, 92))
    mirror(store, folder, more).close()
    seed_group = store.by(**{"dmray.level": "seed group", "model": "DM"})
    assert seed_group.history("agg/n_seeds") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert seed_group.latest()["agg/normalized_score_last_mean"] == pytest.approx(72.0)
    assert [value for _, value in seed_group.history("agg/normalized_score_2_seeds")] == pytest.approx([60.0, 62.0])
    assert [value for _, value in seed_group.history("agg/normalized_score_3_seeds")] == pytest.approx([130 / 3, 72.0])
    assert len(store.level("sweep")) == 1


def test_the_sweeps_run_describes_itself_by_the_reports_tables(folder: SweepFolder) -> None:
    store = FakeStore()
    write_all(folder)
    mirror(store, folder).close(write_report(folder).folder)
    note = store.level("sweep")[0].tags["mlflow.note.content"]
    assert note.startswith("4 trials: DM, DT on hopper-medium-v2, seeds 0, 1.\n\n")
    assert "| DM | 2 of 2 |" in note


def test_another_folder_of_the_same_name_gets_its_own_runs(tmp_path: Path) -> None:
    store = FakeStore()
    for storage in (tmp_path / "a", tmp_path / "b"):
        write_all(SweepFolder(storage, "example"))
        mirror(store, SweepFolder(storage, "example")).close()
    assert len(store.level("trial")) == 8


def test_batches_keep_records_whole(folder: SweepFolder) -> None:
    store = FakeStore()
    write_ledger(folder, TRIALS[0], [started(), *(trained(step) for step in range(1, 401))])
    mirror(store, folder).advance()  # the fake refuses more than MLflow's thousand points in a call
    run = store.by(**{"dmray.trial_key": TRIALS[0].trial_id})
    assert len(run.points) == 400 * 5 > POINTS_PER_BATCH
    assert len(run.history("train/step")) == 400


def test_a_damaged_ledger_is_set_aside_and_named(folder: SweepFolder, caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    path = write_ledger(folder, TRIALS[0], [started()])
    path.write_bytes(path.read_bytes() + b"garbage\n")
    write_ledger(folder, TRIALS[1], whole_trial(1, 2))
    watching = mirror(store, folder)
    assert watching.advance()
    assert watching.advance()
    assert caplog.text.count(f"{path}:2: not a ledger record") == 1
    run = store.by(**{"dmray.trial_key": TRIALS[0].trial_id})
    assert (run.status, run.tags["dmray.status"]) == ("FAILED", "failed")
    assert f"{path}:2: not a ledger record" in run.tags["dmray.last_error"]
    assert store.by(**{"dmray.trial_key": TRIALS[1].trial_id}).status == "FINISHED"


@pytest.mark.parametrize("logged_before", [True, False])
def test_a_ledger_that_was_edited_after_the_end_is_a_failed_run_and_not_registered(
    folder: SweepFolder, logged_before: bool
) -> None:
    store, trial = FakeStore(), TRIALS[0]
    path = write_ledger(folder, trial, whole_trial(1, 2))
    write_done_marker(folder.trial(trial.trial_id), trial.trial_id, done(40))
    if logged_before:
        mirror(store, folder).close()
    path.write_bytes(path.read_bytes().replace(b'"normalized_mean":2.0', b'"normalized_mean":92.0'))
    again = mirror(store, folder)
    again.close()
    run = store.by(**{"dmray.trial_key": trial.trial_id})
    assert (run.status, run.tags["dmray.status"]) == ("FAILED", "failed")
    assert "was changed after the trial finished" in run.tags["dmray.last_error"]
    assert again.register() == []


def test_a_trial_that_started_over_has_a_tag(folder: SweepFolder) -> None:
    store = FakeStore()
    over = StartedOver(time_s=1.0, attempt=2, reason="best.pt is gone")
    write_ledger(folder, TRIALS[0], [started(), evaluated(20, 1, 2), over, started(2), *whole_trial(3, 4)[1:]])
    mirror(store, folder).close()
    run = store.by(**{"dmray.trial_key": TRIALS[0].trial_id})
    assert (run.tags["dmray.started_over"], run.tags["dmray.started_over_at_attempt"]) == ("best.pt is gone", "2")


def test_the_report_and_the_manifest_are_attached_to_the_sweep(folder: SweepFolder) -> None:
    store = FakeStore()
    write_all(folder)
    folder.report.mkdir()
    mirror(store, folder).close(report=folder.report)
    sweep: FakeRun = store.level("sweep")[0]
    assert sweep.artifacts == {"": folder.manifest, "report": folder.report}


@pytest.mark.parametrize("refuses", [True, False])
def test_a_registry_that_does_not_answer_is_another_error_than_one_that_refuses(
    folder: SweepFolder, refuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(folder)
    store = FakeStore()
    filled = mirror(store, folder)
    filled.close()

    def fails(policy: object, sweep_id: str) -> None:
        raise StoreError("no", refuses)

    monkeypatch.setattr(store, "register", fails)
    with pytest.raises(TrackingError, match="registry does not take the best policies: no") as raised:
        filled.register()
    assert isinstance(raised.value, TrackingUnavailableError) is not refuses
