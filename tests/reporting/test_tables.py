"""Tables of ledgers whose means and deviations are known."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dmray.records import SweepFolder
from dmray.reporting import collect, render_results
from dmray.reporting.across import results_by_protocol
from dmray.reporting.columns import trial_columns
from dmray.reporting.tables import leader_text, overview_table, score_table
from tests.mlflow_mirror.examples import (
    done,
    failed,
    started,
    trained,
)
from tests.reporting.examples import comparison, seed_groups, strong, write


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path, "example")


def test_means_and_sample_deviations_over_seeds(folder: SweepFolder) -> None:
    write(folder, {"dm 0": [80, 50], "dm 1": [56, 56], "dt 0": [10, 20], "dt 1": [40, 30]})
    table = seed_groups(score_table(comparison(folder)))
    assert table["DM"] == {
        "method": "DM",
        "seeds": "2 of 2",
        "last, normalized": "53.0 ± 4.2",  # 50 and 56: deviation 6 / sqrt(2)
        "best, normalized": "68.0 ± 17.0",  # 80 and 56
        "last, raw return": "530.0 ± 42.4",
        "last 2, normalized": "60.5 ± 6.4",  # 65 and 56
        "last, IQM [95 %]": "53.0 [50.0, 56.0]",
    }
    assert table["DT"]["last, normalized"] == "25.0 ± 7.1"
    assert table["DT"]["best, normalized"] == "30.0 ± 14.1"


def test_a_mean_just_below_the_minimum_is_zero(folder: SweepFolder) -> None:
    write(folder, {"dm 0": [-0.02, -0.02], "dm 1": [-0.02, -0.02], "dt 0": [0, 0], "dt 1": [0, 0]})
    assert seed_groups(score_table(comparison(folder)))["DM"] == {
        "method": "DM",
        "seeds": "2 of 2",
        **dict.fromkeys(("last, normalized", "best, normalized", "last 2, normalized"), "0.0 ± 0.0"),
        "last, raw return": "-0.2 ± 0.0",
        "last, IQM [95 %]": "0.0 [0.0, 0.0]",
    }


def test_the_highest_mean_of_each_column_and_all_that_may_equal_it_are_bold(folder: SweepFolder) -> None:
    scores: dict[str, list[Any]] = {
        **{f"dm {seed}": [90 + seed, 50 + seed] for seed in range(3)},
        **{f"dt {seed}": [10 + seed, 51 - seed] for seed in range(3)},  # last scores overlap, best ones do not
    }
    write(folder, scores, seeds=[0, 1, 2])
    table = score_table(comparison(folder))
    assert strong(table) == {
        ("DM", "best, normalized"),
        ("DM", "last 2, normalized"),
        ("DM", "last, normalized"),
        ("DT", "last, normalized"),
        ("DM", "last, raw return"),
        ("DT", "last, raw return"),
    }
    assert table.note.startswith("Bold: the highest mean of a column, and every mean that is not distinguishable")


def test_nothing_is_bold_with_one_seed(folder: SweepFolder) -> None:
    write(folder, {"dm 0": [90, 50], "dt 0": [10, 60]}, seeds=[0])
    assert strong(score_table(comparison(folder))) == set()


def test_methods_with_the_same_scores_are_bold_together(folder: SweepFolder) -> None:
    write(folder, {f"{method} {seed}": [0, 0] for method in ("dm", "dt") for seed in (0, 1)})
    assert ("DM", "last, normalized") in strong(score_table(comparison(folder)))
    assert ("DT", "last, normalized") in strong(score_table(comparison(folder)))


@pytest.mark.parametrize(("evaluations", "name"), [(1, None), (4, "last 4, normalized"), (12, "last ten, normalized")])
def test_the_mean_of_the_last_evaluations_is_named_by_their_number(
    folder: SweepFolder, evaluations: int, name: str | None
) -> None:
    scores = [1.0] * (evaluations - 1) + [11.0]
    training = {"steps": 20 * evaluations}
    write(folder, {"dm 0": scores, "dt 0": [2.0] * (evaluations + 1)}, seeds=[0], training=training)
    table = score_table(comparison(folder))
    assert [column for column in table.columns if column.startswith(("last ten", "last 4", "last 1"))] == [name] * bool(
        name
    )
    if name:
        assert seed_groups(table)["DM"][name] == {4: "3.5", 12: "2.0"}[evaluations]


def test_a_single_method_is_not_marked(folder: SweepFolder) -> None:
    write(folder, {"dm 0": [90, 50]}, seeds=[0])
    assert strong(score_table(comparison(folder))) == set()


def test_trials_without_a_score_are_counted_but_not_in_the_mean(folder: SweepFolder) -> None:
    diverged: list[Any] = [started(), trained(20), done(20, "diverged", None)]
    ledgers = {"dm 0": [50, 60], "dm 1": diverged, "dm 2": [started(), failed(1)], "dm 3": [started()], "dt 0": [1, 2]}
    write(folder, ledgers, seeds=[0, 1, 2, 3])
    table = seed_groups(score_table(comparison(folder)))
    assert table["DM"]["seeds"] == "1 of 4"
    assert table["DM"]["last, normalized"] == "60.0"
    assert table["DM"]["without a score"] == "1 diverged, 1 failed, 1 started"
    assert table["DT"]["without a score"] == "3 waiting"


def test_the_score_of_the_first_target_is_reported(folder: SweepFolder) -> None:
    write(folder, {"dm 0": [50, 60]}, seeds=[0])  # the second target scores 5 less at each step
    assert seed_groups(score_table(comparison(folder)))["DM"]["last, normalized"] == "60.0"


def test_the_title_names_the_protocol(folder: SweepFolder) -> None:
    write(folder, {})
    title = score_table(comparison(folder)).title
    assert "decode window, 2 episodes, evaluation seed 0" in title
    assert title.endswith("mean ± std over seeds")


@pytest.mark.parametrize(
    ("ledgers", "sentence"),
    [
        ({}, "Too few methods have finished to compare."),
        (
            {"dm 0": [1, 60], "dt 0": [1, 50]},
            "DM is ahead of DT by 10.0 normalized points (last score; with one seed there is no interval, so this is "
            "not settled).",
        ),
        (
            {"dm 0": [1, 60], "dm 1": [1, 62], "dt 0": [1, 40], "dt 1": [1, 41]},
            "DM is ahead of DT by 20.5 normalized points (last score, 95 % interval 14.1 to 26.9, 2 paired seeds): "
            "settled.",
        ),
        (
            {"dm 0": [1, 40], "dm 1": [1, 62], "dt 0": [1, 50], "dt 1": [1, 50]},
            "DM is ahead of DT by 1.0 normalized points (last score, 95 % interval -138.8 to 140.8, 2 paired seeds): "
            "not settled, because the interval contains 0.",
        ),
        (
            {"dm 0": [1, 50.04], "dt 0": [1, 50]},
            "DM and DT: the last scores differ by less than 0.1 normalized points, the resolution of this report; "
            "with one seed there is no interval, so this is not settled.",
        ),
        (
            {"dm 0": [1, 60], "dm 1": [1, 40], "dt 0": [1, 50], "dt 1": [1, 50]},
            "DM and DT: the last scores differ by less than 0.1 normalized points, the resolution of this report (95 % "
            "interval -127.1 to 127.1, 2 paired seeds); the interval contains larger differences, so this is not "
            "settled.",
        ),
        (
            {"dm 0": [1, 60], "dm 1": [1, 40], "dt 0": [1, 60], "dt 1": [1, 40]},
            "DM and DT are level: the last scores differ by less than 0.1 normalized points, the resolution of this "
            "report.",
        ),
        (
            {"dm 0": [1, 60], "dm 1": [1, 60], "dt 0": [1, 50], "dt 1": [1, 50]},
            "DM is ahead of DT by 10.0 normalized points (last score; there is no spread over seeds, so this is not "
            "settled).",
        ),
    ],
)
def test_the_lead_is_said_with_its_interval(folder: SweepFolder, ledgers: dict[str, list[Any]], sentence: str) -> None:
    write(folder, ledgers)
    assert sentence in leader_text(comparison(folder))


def test_dm_is_always_compared_with_dt(folder: SweepFolder) -> None:
    ledgers: dict[str, list[Any]] = {"dm 0": [1, 50], "dt 0": [1, 40], "hdm 0": [1, 70], "hdt 0": [1, 60]}
    write(folder, ledgers, seeds=[0], grid=[{"methods": ["dm", "dt", "hdm", "hdt"]}])
    text = leader_text(comparison(folder))
    assert text.startswith("HDM is ahead of HDT by 10.0")
    assert "DM is ahead of DT by 10.0" in text.partition(". ")[2]


def test_the_overview_averages_only_data_sets_that_all_methods_have(folder: SweepFolder) -> None:
    ledgers: dict[str, list[Any]] = {
        "dm 0 hopper-medium-v2": [1, 60],
        "dt 0 hopper-medium-v2": [1, 50],
        "dm 0 hopper-expert-v2": [1, 80],
        "dt 0 hopper-expert-v2": [1, 90],
        "dm 0 hopper-medium-expert-v2": [1, 10],
    }
    names = ["hopper-medium-v2", "hopper-expert-v2", "hopper-medium-expert-v2"]
    write(folder, ledgers, seeds=[0], datasets=names)
    (group,) = results_by_protocol(collect(folder).comparisons)
    table = overview_table(group)
    found = seed_groups(table)
    assert (found["hopper-medium-v2"]["DM"], found["hopper-medium-v2"]["DT"]) == ("60.0", "50.0")
    assert found["hopper-medium-expert-v2"]["DT"] == "-"
    assert found["mean of the 2 data sets that all methods have"]["DM"] == "70.0"
    assert strong(table) == set(), "one seed"


def test_the_overview_marks_the_best_of_each_row_by_its_own_test(folder: SweepFolder) -> None:
    names = ["hopper-medium-v2", "hopper-expert-v2"]
    ledgers: dict[str, list[Any]] = {}
    for seed in range(3):
        ledgers |= {f"dm {seed} {names[0]}": [1, 60 + seed], f"dt {seed} {names[0]}": [1, 40 - seed]}
        ledgers |= {f"dm {seed} {names[1]}": [1, 60 + seed], f"dt {seed} {names[1]}": [1, 62 - seed]}
    write(folder, ledgers, seeds=[0, 1, 2], datasets=names)
    (group,) = results_by_protocol(collect(folder).comparisons)
    table = overview_table(group)
    mean = "mean of the 2 data sets that all methods have"
    assert strong(table) == {(names[0], "DM"), (names[1], "DM"), (names[1], "DT"), (mean, "DM")}
    assert "a row" in table.note


def test_a_baseline_decides_the_bold_cells_of_all_tables_alike(folder: SweepFolder) -> None:
    """With the baseline DM fewer comparisons are made, so the lead of DM is settled; in each table or in none."""
    scores = {"dm": (60.0, 62, 61), "dm+r": (58.0, 59.6, 59.4), "hdm": (40.0, 55, 20), "dt": (30.0, 50, 10)}
    ledgers = {f"{name} {seed}": [1, each] for name, three in scores.items() for seed, each in enumerate(three)}
    names = ["hopper-medium-v2", "hopper-expert-v2"]
    write(folder, ledgers, seeds=[0, 1, 2], datasets=names, grid=[{"methods": list(scores)}])
    (group,) = results_by_protocol(collect(folder).comparisons)
    for baseline in (None, "dm"):
        overview, own = overview_table(group, baseline), score_table(group.comparisons[0], baseline)
        row = {label for name, label in strong(overview) if name == names[0]}
        assert row == {label for label, column in strong(own) if column == "last, normalized"}, baseline
    assert strong(overview_table(group)) != strong(overview_table(group, "dm"))


def test_trial_rows_are_flat_and_complete(folder: SweepFolder) -> None:
    write(folder, {"dm 0": [70, 60]}, seeds=[0])
    rows = trial_columns(collect(folder)).to_pylist()
    assert [set(row) for row in rows] == [set(rows[0])] * 2
    assert (rows[0]["last_normalized_score"], rows[0]["best_normalized_score"], rows[0]["best_step"]) == (60, 70, 20)
    assert (rows[1]["status"], rows[1]["last_normalized_score"]) == ("waiting", None)


def test_the_terminal_table_fits_eighty_columns(folder: SweepFolder) -> None:
    write(folder, {"dm 0": [80, 50], "dm 1": [56, 56], "dt 0": [10, 20]})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_results(collect(folder)))
    text = console.export_text()
    assert "53.0 ± 4.2" in text
    assert "530.0 ± 42.4" in text
    assert "1 waiting" in text


@pytest.mark.parametrize("columns", [80, 100])
def test_long_names_of_methods_do_not_break_the_terminal_table(folder: SweepFolder, columns: int) -> None:
    """Raw returns go first, and that is said."""
    sizes = [{"n_layer": 3}, {"n_layer": 6, "d_model": 256, "context_length": 50}]
    scores: dict[str, list[Any]] = {"dm 0": [1300, 1234], "dm 1": [1200, 1244], "dt 0": [10, 20]}
    write(folder, scores, grid=[{"methods": ["dm", "dt"], "models": sizes}])
    console = Console(width=columns, record=True, file=io.StringIO())
    console.print(render_results(collect(folder)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= columns
    rows = [line for line in text.splitlines() if "1239.0 ± 7.1" in line]
    assert len(rows) == 2, "a row per size, with all of its numbers in one line"
    assert all("1272.0 ± 39.6" in row for row in rows)
    assert ("12390.0" in text) == ("raw returns are in the report" not in text) == (columns == 100)
