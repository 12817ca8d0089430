"""Seeds that early stopping left are no result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dmray.records import SweepFolder
from dmray.reporting import collect, write_report
from dmray.reporting.across import aggregate_table, results_by_protocol
from dmray.reporting.compared import compare
from dmray.reporting.figures import curve_of
from dmray.reporting.tables import candidates_over, leader_text, overview_table, score_table
from tests.mlflow_mirror.examples import decided, evaluated, started, stopped_trial, whole_trial
from tests.reporting.examples import comparison, seed_groups, strong, write

RULE = {"grace_steps": 20, "reduction_factor": 2, "within": "dataset"}
LEDGERS: dict[str, list[Any]] = {
    "dm 0": [70, 90],
    "dm 1": stopped_trial(10, 70),
    "dt 0": [50, 60],
    "dt 1": [40, 50],
}


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path, "example")


def test_a_seed_group_with_a_stopped_seed_has_no_mean_and_is_not_compared(folder: SweepFolder) -> None:
    write(folder, LEDGERS, early_stopping=RULE)
    table = score_table(comparison(folder))
    found = seed_groups(table)
    assert set(list(found["DM"].values())[2:-1]) == {"-"}
    assert (found["DM"]["seeds"], found["DM"]["without a score"]) == ("1 of 2", "1 stopped early")
    assert found["DT"]["last, normalized"] == "55.0 ± 7.1"
    assert strong(table) == set(), "DT is alone"
    text = leader_text(comparison(folder))
    assert text == "Too few methods have finished to compare. Not compared, because seeds were stopped early: DM."


def test_it_is_not_in_aggregates(folder: SweepFolder) -> None:
    names = ["hopper-medium-v2", "hopper-expert-v2"]
    ledgers = {key: [80, 95] if key == "dm 1" else value for key, value in LEDGERS.items()}
    write(folder, ledgers | {"dm 1 hopper-expert-v2": LEDGERS["dm 1"]}, datasets=names, early_stopping=RULE)
    (group,) = results_by_protocol(collect(folder).comparisons)
    overview = seed_groups(overview_table(group))
    assert (overview["hopper-medium-v2"]["DM"], overview["hopper-expert-v2"]["DM"]) == ("92.5 ± 3.5", "stopped early")
    mean = overview["mean of the 2 data sets that all methods have"]
    assert (mean["DM"], mean["DT"]) == ("-", "55.0")
    assert set(seed_groups(aggregate_table(group))) == {"DT"}
    assert compare(candidates_over(group)) == ()


def test_its_curve_has_all_seeds_and_the_steps_that_all_have(folder: SweepFolder) -> None:
    write(folder, LEDGERS, early_stopping=RULE)
    curve = curve_of(comparison(folder).seed_groups[0])
    assert curve is not None
    assert (curve.at, curve.mean, curve.seeds, curve.end) == ([20], [40.0], 2, ", stopped early")


def test_a_group_whose_seeds_may_still_be_stopped_has_no_mean(folder: SweepFolder) -> None:
    through = [*whole_trial(70, 90)[:3], decided(20, 70), *whole_trial(70, 90)[3:]]
    write(folder, {"dm 0": through, "dm 1": [started(), evaluated(20, 10, 5)]}, early_stopping=RULE)
    assert seed_groups(score_table(comparison(folder)))["DM"]["last, normalized"] == "-"


def test_a_trial_that_finished_after_a_decision_to_stop_counts(folder: SweepFolder) -> None:
    went_on = [*stopped_trial(10, 70), started(2, 20), *whole_trial(10, 30)[3:]]
    write(folder, LEDGERS | {"dm 1": went_on})
    assert seed_groups(score_table(comparison(folder)))["DM"]["last, normalized"] == "60.0 ± 42.4"


def test_the_report_has_a_section_on_early_stopping(folder: SweepFolder) -> None:
    write(folder, LEDGERS, early_stopping=RULE)
    report = write_report(folder).markdown.read_text()
    section = report.partition("## Early stopping")[2].partition("\n## ")[0]
    assert "the first rung is step 20, each further rung is 2 times the previous one. At a rung, among" in section
    assert "1 of 4 trials were stopped. This saved 20 of 160 optimizer steps (12%)." in section
    assert "1 of 2 rows have seeds that were stopped" in section
    assert "| step 20 | 1 | 1 | 20 |" in section
    assert "| stopped early | 20 | at the rung of step 20 |" in report
    assert "4 trials: 3 finished, 1 stopped early." in report


def test_a_sweep_without_early_stopping_has_no_such_section(folder: SweepFolder) -> None:
    write(folder, {"dm 0": [70, 90]})
    assert "Early stopping" not in write_report(folder).markdown.read_text()
