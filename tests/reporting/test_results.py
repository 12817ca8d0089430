from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dmray.errors import StorageError
from dmray.methods import METHODS
from dmray.planning import manifest
from dmray.planning.plan import Plan, plan
from dmray.progress.trial_status import TrialStatus
from dmray.records import LedgerRecord, SweepFolder
from dmray.reporting import SweepResults, collect
from dmray.reporting.columns import trial_columns
from dmray.specs import IDENTITY_VERSION, SweepSpec
from tests.mlflow_mirror.examples import (
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


def results_of(folder: SweepFolder, sweep: SweepSpec) -> SweepResults:
    write_manifest(folder, sweep)
    return collect(folder)


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path, "example")


def test_every_trial_has_one_status(folder: SweepFolder) -> None:
    sweep = example_sweep(seeds=[0, 1, 2])
    trials = trials_of(sweep)
    ledgers: list[list[LedgerRecord]] = [
        whole_trial(50, 60),
        [started(), trained(20), done(20, "diverged", None)],
        [started(), failed(10)],
        [started(), trained(20)],
        [started(), failed(10), started(2, 0)],
    ]
    for trial, records in zip(trials, ledgers, strict=False):
        write_ledger(folder, trial, records)
    results = results_of(folder, sweep)
    statuses = [result.status for result in results.trials]
    assert statuses == ["finished", "diverged", "failed", "started", "started", "waiting"]
    assert [result.error for result in results.trials] == [
        None,
        None,
        "OSError: disk full",
        None,
        "OSError: disk full",
        None,
    ]
    assert results.count(TrialStatus.STARTED) == 2


def test_only_a_finished_trial_has_last_and_best(folder: SweepFolder) -> None:
    sweep = example_sweep()
    trials = trials_of(sweep)
    write_ledger(folder, trials[0], whole_trial(70, 60))
    write_ledger(folder, trials[1], [started(), evaluated(20, 90, 1)])
    first, second, *_ = results_of(folder, sweep).trials
    assert first.last is not None
    assert first.best is not None
    assert (first.last.normalized, first.last.step, first.best.normalized, first.best.step) == (60, 40, 70, 20)
    assert (second.last, second.best) == (None, None)
    assert len(second.scores) == 1


def test_a_repeated_evaluation_counts_once_with_its_first_score(folder: SweepFolder) -> None:
    sweep = example_sweep()
    records: list[LedgerRecord] = [
        started(),
        evaluated(20, 50, 1),
        started(2),
        evaluated(20, 51, 1),
        evaluated(40, 60, 1),
        done(),
    ]
    write_ledger(folder, trials_of(sweep)[0], records)
    result = results_of(folder, sweep).trials[0]
    assert [score.normalized for score in result.scores] == [50, 60]
    assert result.attempts == 2


def test_seeds_of_a_setting_make_a_group_and_methods_a_comparison(folder: SweepFolder) -> None:
    (comparison,) = results_of(folder, example_sweep(seeds=[0, 1, 2])).comparisons
    assert [(seed_group.label, len(seed_group.trials)) for seed_group in comparison.seed_groups] == [
        ("DM", 3),
        ("DT", 3),
    ]


def test_labels_of_several_models_have_the_fields_that_differ(folder: SweepFolder) -> None:
    grid = [{"methods": ["dm"], "models": [{"d_model": 64}, {"d_model": 128}]}]
    (comparison,) = results_of(folder, example_sweep(grid=grid)).comparisons
    assert [seed_group.label for seed_group in comparison.seed_groups] == ["DM (d_model 64)", "DM (d_model 128)"]


def test_labels_and_columns_tell_values_of_the_training_apart(folder: SweepFolder) -> None:
    planned = plan(example_sweep(training={"steps": 40, "learning_rate": [1e-4, 3e-4]}, seeds=[0]))
    manifest.write_manifest(planned, folder)
    results = collect(folder)
    labels = [seed_group.label for seed_group in results.comparisons[0].seed_groups]
    assert labels[:2] == ["DM (learning_rate 1e-4)", "DT (learning_rate 1e-4)"]
    assert len(set(labels)) == 4
    rows = trial_columns(results).to_pylist()
    assert [(row["method"], row["learning_rate"], row["training_steps"]) for row in rows] == [
        (trial.method, trial.training.learning_rate, 40) for trial in planned.trials
    ]


def test_each_data_set_has_its_own_comparison(folder: SweepFolder) -> None:
    maze = {"name": "mine", "task": "maze2d-umaze", "generate": {}}
    results = results_of(folder, example_sweep(datasets=["hopper-medium-v2", maze]))
    assert [comparison.dataset.name for comparison in results.comparisons] == ["hopper-medium-v2", "mine"]


def test_protocols_are_never_mixed(folder: SweepFolder) -> None:
    """Two evaluations of one data set, as a manifest merged from two sweeps could hold."""
    ten, hundred = (example_sweep(evaluation={"episodes": n, "every_steps": 20}) for n in (10, 100))
    manifest.write_manifest(Plan(ten, (*trials_of(ten), *trials_of(hundred))), folder)
    results = collect(folder)
    assert sorted(comparison.protocol.episodes for comparison in results.comparisons) == [10, 100]
    assert all(len(comparison.seed_groups) == 2 for comparison in results.comparisons)


def test_a_folder_without_a_sweep_is_an_error(folder: SweepFolder) -> None:
    with pytest.raises(StorageError, match=r"example: no sweep here \(no sweep\.json\); name the folder"):
        collect(folder)


def test_a_sweep_with_other_trial_ids_is_an_error(folder: SweepFolder) -> None:
    write_manifest(folder, example_sweep())
    content = json.loads(folder.manifest.read_text())
    unnoted = {key: value for key, value in content.items() if key != "identity_version"}
    for other in (content | {"identity_version": IDENTITY_VERSION + 1}, unnoted):
        folder.manifest.write_text(json.dumps(other))
        with pytest.raises(StorageError, match=r"sweep\.json: written by a version of dmray with other trial ids"):
            collect(folder)


def test_a_damaged_manifest_is_an_error(folder: SweepFolder) -> None:
    folder.path.mkdir(parents=True)
    folder.manifest.write_text('{"sweep": {}}')
    with pytest.raises(StorageError, match=r"sweep\.json: not the manifest of a sweep of this version"):
        collect(folder)


def test_methods_of_one_label_are_told_apart(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS._added, "again", replace(METHODS["dm"], name="again"))
    (comparison,) = results_of(folder, example_sweep()).comparisons
    labels = [group.label for group in comparison.seed_groups]
    assert "DM [dm]" in labels
    assert "DT" in labels
