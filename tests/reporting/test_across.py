"""What is said over all data sets, of ledgers whose answers are known."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dmray.records import SweepFolder
from dmray.reporting import collect
from dmray.reporting.across import ProtocolResults, aggregate_table, cost_table, improvement_table, results_by_protocol
from dmray.reporting.compared import compare, differences_table
from dmray.reporting.document import Table, TableCell, to_latex
from dmray.reporting.paper import paper_table
from dmray.reporting.tables import candidates_over
from tests.mlflow_mirror.examples import example_sweep, trials_of, whole_trial, write_ledger, write_manifest
from tests.reporting.examples import seed_groups, write

TWO = ["hopper-medium-v2", "hopper-expert-v2"]
LEDGERS: dict[str, list[Any]] = {
    "dm 0 hopper-medium-v2": [1, 60],
    "dm 1 hopper-medium-v2": [1, 70],
    "dt 0 hopper-medium-v2": [1, 50],
    "dt 1 hopper-medium-v2": [1, 65],
    "dm 0 hopper-expert-v2": [1, 110],
    "dm 1 hopper-expert-v2": [1, 100],
    "dt 0 hopper-expert-v2": [1, 90],
    "dt 1 hopper-expert-v2": [1, 80],
}


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path, "example")


def group(*folders: SweepFolder) -> ProtocolResults:
    (only,) = results_by_protocol(collect(*folders).comparisons)
    return only


def test_aggregates_are_over_all_runs_of_all_data_sets(folder: SweepFolder) -> None:
    write(folder, LEDGERS, datasets=TWO)
    found = seed_groups(aggregate_table(group(folder)))
    assert found["DM"]["runs"] == "4"
    assert found["DM"]["mean"].startswith("85.0 [")
    assert found["DM"]["IQM"].startswith("85.0 [")  # of 60, 70, 100, 110 the middle two
    assert found["DT"]["IQM"].startswith("72.5 [")  # of 50, 65, 80, 90
    assert found["DM"]["optimality gap (lower is better)"].startswith("17.5 [")  # 40, 30, 0 and 0


def test_the_probability_of_improvement_over_the_baseline(folder: SweepFolder) -> None:
    write(folder, LEDGERS, datasets=TWO)
    found = seed_groups(improvement_table(group(folder), [("DM", "DT")]))["DM over DT"]
    assert found["probability"] == "0.88"  # 3 of 4 pairs on medium, all on expert


def test_a_difference_over_data_sets_is_the_mean_of_its_paired_differences(folder: SweepFolder) -> None:
    write(folder, LEDGERS, datasets=TWO)
    (found,) = compare(candidates_over(group(folder)))
    assert found.difference.value == pytest.approx(13.75)  # 10 and 5; 20 and 20
    row = seed_groups(differences_table([found], "2 data sets", "all", "score"))["DM minus DT"]
    assert row["seeds"] == "2 paired seeds"
    assert row["difference [95 %]"].startswith("+13.8 [")


def test_with_one_seed_there_is_no_conclusion(folder: SweepFolder) -> None:
    write(folder, {key: value for key, value in LEDGERS.items() if " 0 " in key}, datasets=TWO, seeds=[0])
    compared = compare(candidates_over(group(folder)))
    found = seed_groups(differences_table(compared, "2 data sets", "all", "score"))["DM minus DT"]
    assert (found["difference [95 %]"], found["p (Holm)"], found["conclusion"]) == (
        "+15.0 ",
        "-",
        "unknown with one seed",
    )
    assert compared[0].outlook() == ""
    assert seed_groups(improvement_table(group(folder), [("DM", "DT")]))["DM over DT"]["bootstrap [95 %]"] == "-"
    assert seed_groups(aggregate_table(group(folder)))["DM"]["mean"] == "85.0"


def test_aggregates_are_over_data_sets_that_all_methods_have(folder: SweepFolder) -> None:
    ledgers = {key: value for key, value in LEDGERS.items() if key[:2] == "dm" or "expert" not in key}
    write(folder, ledgers, datasets=TWO)
    table = aggregate_table(group(folder))
    assert "1 data set of 2: those that all methods have" in table.title
    assert seed_groups(table)["DM"]["mean"].startswith("65.0 [")


def test_methods_are_compared_with_baselines_of_the_same_size(folder: SweepFolder) -> None:
    grid = [{"methods": ["dm", "dt", "hdm"], "models": [{"n_layer": 3}, {"n_layer": 6}]}]
    write(folder, {f"{method} 0": [1, 60] for method in ("dm", "dt", "hdm")}, grid=grid, seeds=[0])
    pairs = {(each.first, each.second) for each in compare(candidates_over(group(folder)))}
    assert {(first, second) for first, second in pairs if second.startswith("DT")} == {
        ("DM (n_layer 3)", "DT (n_layer 3)"),
        ("DM (n_layer 6)", "DT (n_layer 6)"),
        ("HDM (n_layer 3)", "DT (n_layer 3)"),
        ("HDM (n_layer 6)", "DT (n_layer 6)"),
        ("DM (n_layer 3)", "DT (n_layer 6)"),  # the first of the highest means with every other
    }
    assert {each.tests for each in compare(candidates_over(group(folder)))} == {0}


def test_data_that_dmray_recorded_never_stand_beside_d4rls(folder: SweepFolder) -> None:
    made = {"name": "hopper-made", "task": "hopper", "generate": {"behaviour": "medium", "transitions": 100}}
    ledgers = {f"{method} {seed}": [1, 60] for method in ("dm", "dt") for seed in (0, 1)}
    write(folder, ledgers, datasets=["hopper-medium-v2", made])
    groups = results_by_protocol(collect(folder).comparisons)
    found = {each.protocol.simulation: [one.dataset.name for one in each.comparisons] for each in groups}
    assert found == {"d4rl-mujoco": ["hopper-medium-v2"], "made": ["hopper-made"]}
    assert len({aggregate_table(each).title for each in groups}) == 2
    assert [each.dataset.name for each in collect(folder, protocol="made").comparisons] == ["hopper-made"]


def test_aggregates_do_not_mix_protocols(folder: SweepFolder, tmp_path: Path) -> None:
    other = SweepFolder(tmp_path / "other", "example")
    evaluation = {"episodes": 2, "every_steps": 20, "target_returns": [3600.0], "decode": "stream:2"}
    write(folder, LEDGERS, datasets=TWO)
    write(other, LEDGERS, datasets=TWO, evaluation=evaluation)
    decodes = [each.protocol.decode for each in results_by_protocol(collect(folder, other).comparisons)]
    assert decodes == ["stream:2", "window"]


def test_a_trial_of_two_sweeps_counts_once_with_most_steps(folder: SweepFolder, tmp_path: Path) -> None:
    other = SweepFolder(tmp_path / "other", "example")
    for place, score in ((folder, 60), (other, 70)):
        sweep = example_sweep(seeds=[0])
        write_manifest(place, sweep)
        ended = whole_trial(1, score)
        write_ledger(place, trials_of(sweep)[0], ended if place is other else ended[:-1])
    results = collect(folder, other)
    assert len(results.trials) == 2
    assert results.name == "example + example"
    assert results.trials[0].last is not None
    assert results.trials[0].last.normalized == 70
    assert collect(folder, other, protocol="minari").trials == ()


def test_times_are_those_of_finished_trials(folder: SweepFolder) -> None:
    write(folder, LEDGERS, datasets=TWO)
    found = seed_groups(cost_table(group(folder)))["DM"]
    assert found["trials"] == "4"
    assert found["evaluations"] == "8"


def test_the_papers_numbers_are_compared_only_for_the_same_protocol(folder: SweepFolder, tmp_path: Path) -> None:
    scores = {"dm 0": [1, 60], "dt 0": [1, 50]}
    write(folder, scores, seeds=[0], datasets=["maze2d-umaze-v1", "hopper-medium-v2", "bullet-hopper-medium-v0"])
    table = paper_table(collect(folder).comparisons)
    assert table is not None
    assert {row[0].text for row in table.rows} == {"maze2d-umaze-v1", "bullet-hopper-medium-v0"}
    published = {(row[0].text, row[1].text): row[2].text for row in table.rows}
    assert published["maze2d-umaze-v1", "DM"] == "110.25"
    assert published["bullet-hopper-medium-v0", "DT"] == "1241.6"

    others: list[dict[str, Any]] = [
        {"datasets": [{"name": "maze2d-umaze-v1", "path": "mine.hdf5"}]},
        {"grid": [{"methods": ["dm"], "models": [{"n_layer": 3}]}]},
        {"evaluation": {"episodes": 2, "every_steps": 20, "target_returns": [3600.0], "decode": "recurrent"}},
    ]
    for place, change in enumerate(others):
        other = SweepFolder(tmp_path / str(place), "example")
        write(other, scores, **({"seeds": [0], "datasets": ["maze2d-umaze-v1"]} | change))
        assert paper_table(collect(other).comparisons) is None, change


def test_rows_beside_the_paper_name_the_settings_in_which_they_differ(folder: SweepFolder) -> None:
    blocks = [{"methods": ["dm"], "models": [{"d_state": 16}, {"d_state": 8}]}]
    write(folder, {"dm 0": [1, 60]}, seeds=[0], datasets=["maze2d-umaze-v1"], grid=blocks)
    table = paper_table(collect(folder).comparisons)
    assert table is not None
    assert len({row[1].text for row in table.rows}) == 2


def test_latex_escapes_what_it_must_and_marks_the_best() -> None:
    table = Table("100 % & more", ("method", "a_b"), ((TableCell("DM"), TableCell("1.0 ± 0.5", strong=True)),), "5 %")
    made = to_latex([table, table, replace(table, name="scores-hopper_v2 (data 1)")])
    assert r"\caption{100 \% \& more}" in made
    assert re.findall(r"\\label{(.*)}", made) == ["tab:100-more", "tab:100-more-2", "tab:scores-hopper-v2-data-1"]
    assert r"\par\smallskip\footnotesize 5 \%" in made
    assert r"method & a\_b \\" in made
    assert r"DM & \textbf{1.0 $\pm$ 0.5} \\" in made
