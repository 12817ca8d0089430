"""Trials that were stopped early, in MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.records import LedgerRecord, SweepFolder
from dmray.specs import SweepSpec
from tests.mlflow_mirror.examples import (
    done,
    evaluated,
    example_sweep,
    started,
    stopped_trial,
    trained,
    trials_of,
    whole_trial,
    write_ledger,
    write_manifest,
)
from tests.mlflow_mirror.fake_store import FakeStore

SWEEP = example_sweep(early_stopping={"grace_steps": 20, "reduction_factor": 2, "within": "dataset"})
FIRST, OTHER, SECOND, ANOTHER = trials_of(SWEEP)  # dm, dt, and again with the other seed
GOES_ON: list[LedgerRecord] = [started(2, 20), trained(40), evaluated(40, 30, 25), done(40)]


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    made = SweepFolder(tmp_path, "example")
    write_manifest(made, SWEEP)
    return made


def mirrored(store: FakeStore, folder: SweepFolder, sweep: SweepSpec = SWEEP) -> MlflowMirror:
    mirror = MlflowMirror(store, folder, sweep, trials_of(sweep))
    assert mirror.close().problem is None
    return mirror


def test_the_run_of_a_stopped_trial_is_killed_and_has_the_scores_that_decided(folder: SweepFolder) -> None:
    write_ledger(folder, FIRST, whole_trial(50, 60))
    write_ledger(folder, SECOND, stopped_trial(10, 50))
    for trial in (OTHER, ANOTHER):
        write_ledger(folder, trial, whole_trial(40, 40))
    store = FakeStore()
    for _ in range(2):  # a replay adds nothing
        mirrored(store, folder)
        run = store.by(**{"dmray.trial_key": SECOND.trial_id})
        assert run.status == "KILLED"
        assert (run.tags["dmray.status"], run.tags["dmray.stopped_at_rung"]) == ("stopped_early", "20")
        rung = {name: run.history(f"rung/{name}") for name in ("normalized_score", "cutoff", "num_peers", "stop")}
        assert rung == {
            "normalized_score": [(20, 10.0)],
            "cutoff": [(20, 50.0)],
            "num_peers": [(20, 1.0)],
            "stop": [(20, 1.0)],
        }
        assert run.history("final/normalized_score") == []
    assert store.level("sweep")[0].status == "FINISHED", "nothing is left to be run"


def test_its_seed_group_has_no_aggregate_and_no_best_policy_whichever_trial_ended_first(folder: SweepFolder) -> None:
    store = FakeStore()
    write_ledger(folder, FIRST, whole_trial(50, 60))
    mirrored(store, folder)  # the other seed may yet be stopped
    write_ledger(folder, SECOND, stopped_trial(10, 50))
    mirror = mirrored(store, folder)
    seed_group = store.by(**{"dmray.level": "seed group", "model": "DM"})
    assert not [point for point in seed_group.points if point.key.startswith("agg/")]
    assert mirror.register() == []


def test_a_trial_that_goes_on_after_all_is_finished_and_counts(folder: SweepFolder) -> None:
    store = FakeStore()
    write_ledger(folder, FIRST, whole_trial(50, 60))
    write_ledger(folder, SECOND, stopped_trial(10, 50))
    mirrored(store, folder)
    write_ledger(folder, SECOND, GOES_ON)
    mirrored(store, folder, SWEEP.model_copy(update={"early_stopping": None}))
    run = store.by(**{"dmray.trial_key": SECOND.trial_id})
    assert (run.status, run.tags["dmray.status"]) == ("FINISHED", "finished")
    seed_group = store.by(**{"dmray.level": "seed group", "model": "DM"})
    assert seed_group.latest()["agg/normalized_score_last_mean"] == 45.0
