"""The effects of returns and backbone: planted ones are found, and none where none is planted."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dmray.methods import METHODS
from dmray.planning.manifest import write_manifest
from dmray.planning.plan import plan
from dmray.records import SweepFolder
from dmray.reporting import collect, render_results, write_report
from dmray.reporting.across import results_by_protocol
from dmray.reporting.aggregates import contrast
from dmray.reporting.document import to_markdown
from dmray.reporting.factorial import Factorial, factorials, squares
from dmray.reporting.factorial_view import effects_table, factorial_blocks, sentences
from tests.mlflow_mirror.examples import done, evaluated, example_sweep, started, whole_trial, write_ledger
from tests.reporting.examples import seed_groups, write

TWO = ["hopper-medium-v2", "hopper-expert-v2"]
FOUR = ["dt", "dt-r", "dm+r", "dm"]
WEIGHTS = {"backbone": (-0.5, -0.5, 0.5, 0.5), "returns": (0.5, -0.5, 0.5, -0.5), "interaction": (-1, 1, 1, -1)}


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path, "example")


def ledgers(means: dict[str, float], seeds: int = 3, dataset: str = "") -> dict[str, list[Any]]:
    """Finished trials whose scores are 1 below, at, and 1 above the mean of their method."""
    return {
        f"{method} {seed} {dataset}".strip(): [1, mean + seed - (seeds - 1) / 2]
        for method, mean in means.items()
        for seed in range(seeds)
    }


def only_table(folder: SweepFolder) -> Factorial:
    (results,) = factorials(results_by_protocol(collect(folder).comparisons))
    (table,) = results.factorials
    return table


def section(folder: SweepFolder) -> str:
    found = factorials(results_by_protocol(collect(folder).comparisons))
    return to_markdown(factorial_blocks(found, {}), Path()).replace("\\", "")


def grid(*methods: str, **block: Any) -> dict[str, Any]:
    return {"grid": [{"methods": list(methods), **block}], "seeds": [0, 1, 2]}


@pytest.mark.parametrize(("seeds", "data_sets"), [(3, 1), (3, 2), (5, 1)])
def test_intervals_hold_planted_effects_in_95_of_100_tables(seeds: int, data_sets: int) -> None:
    """Of 120 tables with 3 effects each the share may be 3.5 points away from 95 %: three standard errors."""
    rng = np.random.default_rng(seeds)
    planted = np.tile([20.0, 10.0, 45.0, 15.0], data_sets)  # backbone 15, returns 20, interaction 20
    held, found_zero = [], []
    for _ in range(120):
        strata = [rng.normal(mean, 6.0, seeds) for mean in planted]
        for weights in WEIGHTS.values():
            whole = np.tile(weights, data_sets) / data_sets
            interval = contrast(strata, whole).interval
            assert interval is not None
            held.append(interval[0] <= whole @ planted <= interval[1])
            found_zero.append(interval[0] <= 0 <= interval[1])
    assert abs(np.mean(held) - 0.95) <= 0.035
    assert np.mean(found_zero) < 0.35, "effects three standard errors from 0 are found"


def test_intervals_of_three_seeds_hold_also_if_one_cell_has_nearly_all_the_spread() -> None:
    """The bootstrap of three scores has no draw outside of them, so that percentiles farther out are of no use."""
    rng = np.random.default_rng(1)
    strata = [[rng.normal(0.0, spread, 3) for spread in (10.0, 0.1, 0.1, 0.1)] for _ in range(200)]
    intervals = [contrast(each, WEIGHTS["backbone"]).interval for each in strata]
    assert np.mean([each[0] <= 0 <= each[1] for each in intervals if each is not None]) >= 0.92


def test_where_no_effect_is_planted_one_table_in_twenty_has_one() -> None:
    rng = np.random.default_rng(0)
    intervals = [
        contrast([rng.normal(50.0, 6.0, 3) for _ in range(4)], weights).interval
        for _ in range(150)
        for weights in WEIGHTS.values()
    ]
    wrong = [not each[0] <= 0 <= each[1] for each in intervals if each is not None]
    assert len(wrong) == 450
    assert 0.02 <= np.mean(wrong) <= 0.08


def test_the_interval_of_a_contrast_is_the_same_each_time_and_needs_three_seeds_with_a_spread() -> None:
    scores = [np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.5, 7.0])]
    assert contrast(scores, (1, -1)) == contrast(scores, (1, -1))
    assert contrast([each[:2] for each in scores], (1, -1)).interval is None
    assert contrast([np.full(3, 5.0), np.full(3, 5.0)], (1, -1)).interval is None


def test_the_square_follows_from_the_registry() -> None:
    assert [each.methods for each in squares(METHODS.values())] == [("dt", "dt-r", "dm+r", "dm")]
    assert squares([METHODS[name] for name in ("dt", "dm", "dm+r", "hdm", "bc", "dlstm")]) == []


def test_the_methods_of_a_package_join_the_squares() -> None:
    own = [replace(METHODS[name], name=f"own-{name}", backbone=METHODS["dlstm"].backbone) for name in ("dm", "dm+r")]
    found = squares([*METHODS.values(), *own])
    assert found[0].backbones == ("transformer", "mamba")
    assert ("mamba", "lstm") in [each.backbones for each in found]
    assert {("dt", "dt-r", "own-dm+r", "own-dm"), ("dt", "dt-r", "own-dm+r", "dlstm")} <= {e.methods for e in found}


@pytest.mark.figures
def test_effects_are_those_of_the_formulas(folder: SweepFolder) -> None:
    scores = ledgers({"dt": 20, "dt-r": 10, "dm+r": 45, "dm": 15, "bc": 5, "dlstm": 12}, dataset=TWO[0])
    scores |= ledgers({"dt": 60, "dt-r": 60, "dm+r": 60, "dm": 60, "bc": 60, "dlstm": 60}, dataset=TWO[1])
    write(folder, scores, datasets=TWO, **grid(*FOUR, "bc", "dlstm", "hdm"))
    table = only_table(folder)
    assert table.labels == ("DT", "DT-R", "DM+R", "DM")
    assert [table.rows[0].effects[name].value for name in WEIGHTS] == [15.0, 20.0, 20.0]
    assert [table.overall[name].value for name in WEIGHTS] == [7.5, 10.0, 10.0]
    pairs = {("BC", "DT-R"), ("BC", "DM"), ("DLSTM", "DM")}
    assert set(table.controls) == pairs, "HDM has other tokens; DLSTM names DM as a baseline"
    paths = write_report(folder)
    for text in (paths.markdown.read_text().replace("\\", ""), paths.html.read_text()):
        assert "Rewards x backbone" in text
        assert "+15.0 [" in text
        assert "DLSTM minus DM" in text
    assert (paths.folder / "figures" / "effects.png").read_bytes()[:4] == b"\x89PNG"
    rows = list(csv.DictReader((paths.folder / "factorial.csv").read_text().splitlines()))
    values = {(row["dataset"], row["effect"]): float(row["value"]) for row in rows}
    assert values["hopper-medium-v2", "returns"] == 20
    assert values["mean", "returns"] == 10
    assert values["hopper-medium-v2", "BC minus DT-R"] == -5


def test_the_sentences_follow_from_the_intervals(folder: SweepFolder) -> None:
    write(folder, ledgers({"dt": 50, "dt-r": 20, "dm+r": 40, "dm": 10}), **grid(*FOUR))
    backbone, returns, interaction, scope = sentences(only_table(folder))
    assert "10.0 normalized points below the transformer cells; the 95 % interval" in backbone
    assert backbone.endswith("is below 0.")
    assert "30.0 normalized points above those without" in returns
    assert returns.endswith("is above 0.")
    assert "includes 0: these seeds do not show an effect, and do not show that there is none" in interaction
    assert "hopper-medium-v2" in scope


def test_an_interaction_makes_the_main_effects_a_reading_of_cells(folder: SweepFolder) -> None:
    write(folder, ledgers({"dt": 50, "dt-r": 20, "dm+r": 40, "dm": 40}), **grid(*FOUR))
    assert any("a main effect is the mean of two unequal effects" in text for text in sentences(only_table(folder)))


def test_with_two_seeds_there_are_effects_without_an_interval(folder: SweepFolder) -> None:
    write(folder, ledgers({"dt": 50, "dt-r": 20, "dm+r": 40, "dm": 10}, seeds=2), **(grid(*FOUR) | {"seeds": [0, 1]}))
    table = only_table(folder)
    assert table.overall["returns"].value == 30
    assert table.overall["returns"].interval is None
    assert "There is no interval" in sentences(table)[1]


def test_an_incomplete_cell_is_named_and_gives_no_effect(folder: SweepFolder) -> None:
    means = {"dt": 50.0, "dt-r": 20.0, "dm+r": 40.0, "dm": 10.0}
    scores = ledgers(means, dataset=TWO[0]) | ledgers(means, dataset=TWO[1])
    scores["dt-r 2 hopper-expert-v2"] = [started(), evaluated(20, 3), done(20, "diverged", 20)]
    del scores["dm 1 hopper-expert-v2"]
    write(folder, scores, datasets=TWO, **grid(*FOUR))
    table = only_table(folder)
    assert [each.comparison.name for each in table.cells] == ["hopper-medium-v2"]
    assert table.missing == ("hopper-expert-v2: DT-R (seed 2: diverged), DM (seed 1: waiting)",)
    assert "No effects, because a cell is incomplete: hopper-expert-v2: DT-R (seed 2: diverged)" in section(folder)


def test_a_sweep_without_the_fourth_cell_has_a_sentence_and_one_of_two_methods_nothing(
    folder: SweepFolder, tmp_path: Path
) -> None:
    write(folder, ledgers({"dt": 50, "dm+r": 40, "dm": 10}), **grid("dt", "dm+r", "dm"))
    assert "No effects from DT, DM+R, DM: the fourth cell, DT-R, was not run." in section(folder)
    quick = SweepFolder(tmp_path, "quick")
    write(quick, ledgers({"dt": 50, "dm": 10}), name="quick", **grid("dt", "dm"))
    assert section(quick).strip() == ""


def test_there_is_a_square_for_each_setting_that_all_cells_have(folder: SweepFolder) -> None:
    sizes = [{"n_layer": 2}, {"n_layer": 3}]
    blocks = [{"methods": FOUR, "models": sizes}, {"methods": ["dm"], "models": [{"n_layer": 4}]}]
    write(folder, ledgers(dict.fromkeys(FOUR, 50.0)), grid=blocks, seeds=[0, 1, 2])
    (results,) = factorials(results_by_protocol(collect(folder).comparisons))
    assert [each.labels for each in results.factorials] == [
        tuple(f"{METHODS[name].label} (n_layer {layers})" for name in FOUR) for layers in (2, 3)
    ]
    assert len(results.missing) == 1
    assert "in no 2 x 2 are DM (n_layer 4)" in results.missing[0]


def test_a_field_that_a_control_does_not_use_keeps_it_beside_no_cells(folder: SweepFolder) -> None:
    """BC has no action token, so it is one row, which belongs to the cells of both values of `action_input`."""
    methods = [*FOUR, "bc"]
    training = {"steps": 40, "action_input": ["paper", "dt"]}
    planned = plan(example_sweep(training=training, **grid(*methods)))
    write_manifest(planned, folder)
    for trial in planned.trials:
        write_ledger(folder, trial, whole_trial(1, 50 + trial.seed))
    (results,) = factorials(results_by_protocol(collect(folder).comparisons))
    assert len(results.factorials) == 2
    for table in results.factorials:
        assert {control for control, _ in table.controls} == {"BC"}, table.labels


def test_protocols_and_contents_of_the_data_share_no_square(folder: SweepFolder, tmp_path: Path) -> None:
    means = {"dt": 50.0, "dt-r": 20.0, "dm+r": 40.0, "dm": 10.0}
    other = SweepFolder(tmp_path / "other", "example")
    evaluation = {"episodes": 2, "every_steps": 20, "target_returns": [3600.0], "decode": "stream:2"}
    write(folder, {key: value for key, value in ledgers(means).items() if key[:2] == "dt"}, **grid("dt", "dt-r"))
    write(other, ledgers(means), evaluation=evaluation, **grid(*FOUR))
    (results,) = factorials(results_by_protocol(collect(folder, other).comparisons))
    (table,) = results.factorials
    assert "stream:2" in table.name
    half = SweepFolder(tmp_path / "half", "example")  # the other two cells, on another content of the data
    changed = started().provenance | {"dataset_fingerprint": "beef"}
    ledger = [started().model_copy(update={"provenance": changed}), evaluated(20, 40), done(20)]
    write(half, {f"{name} {seed}": ledger for name in ("dm+r", "dm") for seed in range(3)}, **grid("dm+r", "dm"))
    assert factorials(results_by_protocol(collect(folder, half).comparisons)) == []


def test_the_terminal_shows_the_effects_in_eighty_columns(folder: SweepFolder) -> None:
    means = {"dt": 50.0, "dt-r": 20.0, "dm+r": 140.0, "dm": 10.0}
    write(folder, ledgers(means, dataset=TWO[0]) | ledgers(means, dataset=TWO[1]), datasets=TWO, **grid(*FOUR))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_results(collect(folder)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "Interaction: with mamba the effect of returns is 100.0 normalized points larger" in " ".join(text.split())
    assert any(line.split()[:3] == ["hopper-expert-v2", "backbone", "+40.0"] for line in text.splitlines()), text


def test_the_table_of_effects_has_a_row_for_each_data_set_and_their_mean(folder: SweepFolder) -> None:
    means = {"dt": 50.0, "dt-r": 20.0, "dm+r": 40.0, "dm": 10.0}
    write(folder, ledgers(means, dataset=TWO[0]) | ledgers(means, dataset=TWO[1]), datasets=TWO, **grid(*FOUR))
    table = effects_table(only_table(folder))
    assert list(seed_groups(table)) == [*TWO, "mean of 2 data sets"]
