"""The report of a search: selection trials choose, and are in no mean."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from dmray.mlflow_mirror.layout import ROLE
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.planning.manifest import write_manifest
from dmray.planning.plan import Plan, plan
from dmray.planning.search_space import Outcome
from dmray.records import SweepFolder
from dmray.reporting import collect, write_report
from dmray.reporting.columns import trial_columns
from dmray.reporting.document import Bullets
from dmray.reporting.early_stopping import early_stopping_blocks
from dmray.reporting.search import best_so_far
from dmray.specs import TrialSpec
from tests.mlflow_mirror.examples import example_sweep, failed, started, whole_trial, write_ledger
from tests.mlflow_mirror.fake_store import FakeStore

SEARCH: dict[str, Any] = {
    "seeds": [0, 1],
    "training": {"steps": 40, "learning_rate": [1e-4, 3e-4, 1e-3]},
    "search": {"algorithm": "grid", "seeds": [100]},
}
SCORES = {1e-4: 20.0, 3e-4: 60.0}  # 1e-3 fails
REPORTED = 40.0


def searched(folder: SweepFolder, known: int | None = None) -> Plan:
    """A search whose trials have ended, or only the first `known`; the report's trials have another score."""

    def outcome_of(trial: TrialSpec) -> Outcome:
        score = SCORES.get(trial.training.learning_rate)
        return Outcome("failed") if score is None else Outcome("finished", score, {40: score})

    planned = plan(example_sweep(**SEARCH), outcome_of if known is None else lambda trial: Outcome("open"))
    write_manifest(planned, folder)
    for trial in planned.trials[:known]:
        selection = planned.sweep.is_selection(trial)
        score = SCORES.get(trial.training.learning_rate) if selection else REPORTED + trial.seed
        write_ledger(folder, trial, [started(), failed(3)] if score is None else whole_trial(score))
    return planned


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path, "example")


def test_means_are_over_the_reports_seeds_alone_and_the_label_needs_no_setting(folder: SweepFolder) -> None:
    searched(folder)
    (comparison,) = collect(folder).comparisons
    assert [seed_group.label for seed_group in comparison.seed_groups] == ["DM", "DT"]
    for seed_group in comparison.seed_groups:
        assert {trial.trial.seed for trial in seed_group.trials} == {0, 1}
        spread = seed_group.spread("last", lambda score: score.normalized)
        assert spread is not None
        assert spread.mean == REPORTED + 0.5


def test_the_columns_tell_selection_and_report_apart(folder: SweepFolder) -> None:
    searched(folder)
    rows = trial_columns(collect(folder)).to_pylist()
    assert {(row["role"], row["seed"]) for row in rows} == {("selection", 100), ("report", 0), ("report", 1)}
    groups = {role: {row["seed_group_id"] for row in rows if row["role"] == role} for role in ("selection", "report")}
    assert not groups["selection"] & groups["report"]


@pytest.mark.figures
def test_the_report_says_what_was_tried_and_chosen_and_by_which_scores(folder: SweepFolder) -> None:
    searched(folder)
    text = write_report(folder).markdown.read_text()
    assert "all settings of each method on each data set, proposed by grid." in text
    assert "(with selection seed 100) was chosen" in text
    assert "only those with seeds 0, 1 are compared below" in text
    assert r"| DM | 3 | 2 | 0 | 1 | 60.0 | learning_rate 3e-4 |" in text
    assert "search-example-1.png" in text
    with (folder.report / "search.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "dt"]
    assert [(row["learning_rate"], row["outcome"], row["selection_score"], row["chosen"]) for row in rows] == [
        ("0.0001", "finished", "20", "false"),
        ("0.0003", "finished", "60", "true"),
        ("0.001", "failed or diverged", "", "false"),
    ]


def test_a_search_that_is_not_over_has_no_choice_and_the_report_says_so(folder: SweepFolder) -> None:
    searched(folder, known=3)
    results = collect(folder)
    assert results.comparisons == ()
    dm, dt = results.searches[0].groups
    assert (dm.over, dm.chosen, dt.over) == (False, None, False)
    text = write_report(folder).markdown.read_text()
    assert "The search of DM on hopper-medium-v2 is not over: 2 of 3 settings have ended." in text


def test_the_curve_of_a_search_is_the_best_score_so_far(folder: SweepFolder) -> None:
    searched(folder)
    dm, _ = collect(folder).searches[0].groups
    assert best_so_far(dm) == [20.0, 60.0, 60.0]


def test_in_mlflow_selection_trials_have_a_role_groups_and_labels_of_their_own(folder: SweepFolder) -> None:
    planned, store = searched(folder), FakeStore()
    mirror = MlflowMirror(store, folder, planned.sweep, planned.trials)
    mirror.close()
    trials = [run for run in store.runs.values() if run.tags["dmray.level"] == "trial"]
    assert {(run.tags[ROLE], run.params["seed"]) for run in trials} == {
        ("selection", "100"), ("report", "0"), ("report", "1")
    }  # fmt: skip
    labels = {role: {run.tags["model"] for run in trials if run.tags[ROLE] == role} for role in ("selection", "report")}
    assert labels["report"] == {"DM", "DT"}
    assert "DM (selection, learning_rate 3e-4)" in labels["selection"]
    groups = [run for run in store.runs.values() if run.tags["dmray.level"] == "seed group"]
    chosen = [run for run in groups if run.params["learning_rate"] == "0.0003"]
    seeds = {run.tags[ROLE]: run.latest().get("agg/n_seeds") for run in chosen}
    assert seeds == {"selection": 1, "report": 2}, "no aggregate mixes them"
    registered = mirror.register()
    assert {store.runs[policy.run_id].tags[ROLE] for policy in registered} == {"report"}, "though it scored less"


@pytest.mark.parametrize(("rules", "optimistic"), [({}, True), ({"search": SEARCH["search"]}, False)])
def test_early_stopping_selects_report_trials_only_without_a_search(
    folder: SweepFolder, rules: dict[str, Any], optimistic: bool
) -> None:
    settings = {key: value for key, value in SEARCH.items() if key != "search"} | rules
    early_stopping = {"grace_steps": 20, "reduction_factor": 2}
    planned = plan(example_sweep(early_stopping=early_stopping, **settings), lambda trial: Outcome("open"))
    write_manifest(planned, folder)
    *_, effect = early_stopping_blocks(collect(folder))
    assert isinstance(effect, Bullets)
    assert any("slightly optimistic" in each for each in effect.items) is optimistic
