"""A report of several presets and training budgets of one method: names, comparisons, figure and CSV."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

import dmray
from dmray.planning.manifest import write_manifest
from dmray.planning.plan import plan
from dmray.records import SweepFolder
from dmray.reporting import collect, figures
from dmray.reporting.compared import compare
from dmray.reporting.curves import AXES, setting_curves
from dmray.reporting.render import write_results
from dmray.reporting.tables import candidates_of, last_normalized
from tests.mlflow_mirror.examples import example_sweep, whole_trial, write_ledger

FAIRNESS = Path(__file__).parents[2] / "sweeps" / "fairness.yaml"
GRID = [
    {"methods": ["dm"], "models": [{"d_model": 16, "n_layer": 1}]},
    {"methods": ["dt"], "models": [{"d_model": 16, "n_layer": 1}], "preset": ["paper", "corl"]},
]
SCORES = {None: (10.0, 60.0), "paper": (20.0, 30.0), "corl": (40.0, 58.0)}  # by preset, after 10 and 40 steps


def planted(tmp_path: Path, **changes: Any) -> SweepFolder:
    """DM and two presets of DT with two budgets and three seeds; their last scores are `SCORES` plus the seed."""
    folder = SweepFolder(tmp_path, "example")
    given: dict[str, Any] = {"grid": GRID, "seeds": [0, 1, 2], "training": {"steps": [10, 40]}}
    planned = plan(example_sweep(**given | changes))
    write_manifest(planned, folder)
    for trial in planned.trials:
        short, long = SCORES[trial.preset]
        score = (short if trial.training.steps == 10 else long) + trial.seed
        write_ledger(folder, trial, whole_trial(score, score))
    return folder


@pytest.mark.figures
def test_rows_are_named_after_presets_and_every_preset_is_compared_with_dm_of_its_budget(tmp_path: Path) -> None:
    paths = write_results(collect(planted(tmp_path)), tmp_path / "report")
    rows = list(csv.DictReader(paths.differences.read_text().splitlines()))
    found = {(row["first"], row["second"]): row for row in rows}
    for steps, place in ((10, 0), (40, 1)):
        for preset in ("paper", "corl"):
            row = found[f"DM (steps {steps})", f"DT ({preset}, steps {steps})"]
            assert float(row["difference"]) == SCORES[None][place] - SCORES[preset][place]
            assert row["seeds"] == "3 paired seeds"
    assert all(first.split("steps ")[1] == second.split("steps ")[1] for first, second in found)
    assert len(rows) == 5, "DM and both presets, and after 10 steps the two presets, of which one is the best"
    trials = list(csv.DictReader(paths.trials.read_text().splitlines()))
    assert {(row["method"], row["preset"]) for row in trials} == {("dm", ""), ("dt", "paper"), ("dt", "corl")}
    text = paths.markdown.read_text()
    assert "DM (steps 40) is ahead of DT (corl, steps 40) by 2.0 normalized points" in text
    assert "Only rows of the same number of training steps are compared." in text
    assert "DT (corl, steps 40): preset corl, width 16" in text
    assert "![last score by training steps on hopper-medium-v2](figures/by-steps-hopper-medium-v2.png)" in text


def test_a_control_of_dt_is_compared_with_the_dt_of_its_preset(tmp_path: Path) -> None:
    model = [{"d_model": 16, "n_layer": 1}]
    training = {"training": {"steps": 40}}
    grid = [
        {"methods": ["dm"], "models": model},
        {"methods": ["dt-r", "dt"], "models": model, "preset": ["paper", "corl"]},
    ]
    (comparison,) = collect(planted(tmp_path / "several", grid=grid, **training)).comparisons
    compared = {(each.first, each.second) for each in compare(candidates_of(comparison, last_normalized))}
    assert compared >= {("DT-R (paper)", "DT (paper)"), ("DT-R (corl)", "DT (corl)")}
    assert not compared & {("DT-R (paper)", "DT (corl)"), ("DT-R (corl)", "DT (paper)")}
    alone = [{"methods": ["dm", "dt-r"], "models": model}, {"methods": ["dt"], "models": model, "preset": "corl"}]
    (comparison,) = collect(planted(tmp_path / "alone", grid=alone, **training)).comparisons
    assert ("DT-R", "DT") in {(each.first, each.second) for each in compare(candidates_of(comparison, last_normalized))}


def test_the_figure_of_budgets_has_a_line_for_each_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (comparison,) = collect(planted(tmp_path)).comparisons
    by_steps, *others = (setting_curves(comparison, axis) for axis in AXES)
    assert others == [[], [], []]
    curves = {group.label: (curve.at, curve.mean, curve.low, curve.seeds) for group, curve in by_steps}
    assert curves == {
        label: ([10, 40], [score + 1 for score in SCORES[preset]], list(SCORES[preset]), 3)
        for label, preset in (("DM", None), ("DT (paper)", "paper"), ("DT (corl)", "corl"))
    }
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    assert figures.draw_by_setting(comparison, AXES[0], tmp_path / "x.png")
    axes = drawn[0].axes[0]
    drawn[0].canvas.draw()
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["10", "40"]
    assert axes.get_title(loc="left") == "hopper-medium-v2: last score by training steps"


def test_sizes_that_change_one_at_a_time_have_a_figure_for_each_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three layers of 16 with context 4 in the middle; BC has no context length of its own, and one size."""
    sizes = [(16, 3, 4), (16, 1, 4), (32, 3, 4), (16, 3, 2), (16, 3, 8)]
    models = [dict(zip(("d_model", "n_layer", "context_length"), size, strict=True)) for size in sizes]
    grid = [{"methods": ["dm"], "models": models}, {"methods": ["bc"], "models": [{"d_model": 16, "n_layer": 3}]}]
    planned = plan(example_sweep(grid=grid, seeds=[0, 1]))
    folder = SweepFolder(tmp_path, "example")
    write_manifest(planned, folder)
    for trial in planned.trials:
        score = trial.model.d_model + 100.0 * trial.model.n_layer + 1000.0 * trial.model.context_length + trial.seed
        write_ledger(folder, trial, whole_trial(score, score))
    (comparison,) = collect(folder).comparisons
    found = {axis.field: setting_curves(comparison, axis) for axis in AXES}
    assert {field: [(group.method, curve.at) for group, curve in curves] for field, curves in found.items()} == {
        "steps": [],
        "context_length": [("dm", [2, 4, 8])],
        "d_model": [("dm", [16, 32])],
        "n_layer": [("dm", [1, 3])],
    }
    ((_, by_context),) = found["context_length"]
    assert by_context.mean == [2316.5, 4316.5, 8316.5]
    twice = replace(comparison, seed_groups=(*comparison.seed_groups, comparison.seed_groups[0]))
    assert setting_curves(twice, AXES[1]) == [], "one context twice, as of two releases of a package"
    longest = next(trial for trial in planned.trials if trial.model.context_length == 8 and trial.seed == 0)
    shutil.rmtree(folder.trial(longest.trial_id).path)
    ((_, paired),) = setting_curves(collect(folder).comparisons[0], AXES[1])
    assert (paired.mean, paired.seeds) == ([2317.0, 4317.0, 8317.0], 1), "only of the seed that all contexts have"
    monkeypatch.setattr(figures, "_LINES", ())
    assert not figures.draw_by_setting(comparison, AXES[1], tmp_path / "x.png"), "lines that look alike"


@pytest.mark.figures
def test_one_budget_has_no_such_figure(tmp_path: Path) -> None:
    paths = write_results(collect(planted(tmp_path, training={"steps": 40})), tmp_path / "report")
    assert [path.name for path in paths.figures] == ["hopper-medium-v2.png"]
    assert {(row["first"], row["second"]) for row in csv.DictReader(paths.differences.read_text().splitlines())} == {
        ("DM", "DT (paper)"),
        ("DM", "DT (corl)"),
    }


def test_a_dt_that_is_no_preset_is_described_by_what_differs(tmp_path: Path) -> None:
    model = {"d_model": 16, "n_layer": 1, "timestep_init": 0.02}
    folder = SweepFolder(tmp_path, "example")
    planned = plan(example_sweep(grid=[{"methods": ["dt"], "models": [model]}], seeds=[0]))
    write_manifest(planned, folder)
    for trial in planned.trials:
        write_ledger(folder, trial, whole_trial(1.0, 2.0))
    text = write_results(collect(folder), tmp_path / "report").markdown.read_text()
    assert "preset paper but for timestep_init 0.02, width 16" in text


@pytest.mark.figures
def test_the_fairness_sweep_runs_at_toy_size_to_its_figure_and_table(tmp_path: Path) -> None:
    """The real file with small numbers, in this process: maze data, one preset, two budgets, one seed."""
    toy = "{behaviour: expert, transitions: 500}"
    changes = [
        f"storage={tmp_path}",
        f"datasets=[{{name: open, task: maze2d-open, generate: {toy}}}]",
        "grid.0.models=[{d_model: 8, n_layer: 1, context_length: 4}]",
        "grid.1.models=[{d_model: 8, n_layer: 1, context_length: 4}]",
        "grid.1.preset=corl",
        "overrides=[]",  # of the data sets that are replaced
        "seeds=[0]",
        "training.steps=[2, 4]",
        "training.batch_size=4",
        "evaluation.episodes=2",
        "tracking.mlflow_uri=off",
    ]
    dmray.run_sweep(dmray.load_sweep(FAIRNESS, changes), local=True)
    results = collect(SweepFolder(tmp_path, "fairness"))
    assert [result.status.value for result in results.trials] == ["finished"] * 4
    report = tmp_path / "fairness" / "report"
    assert (report / "figures" / "by-steps-open.png").is_file()
    assert not (report / "figures" / "open.png").exists(), "a learning curve of one evaluation is a point"
    rows = csv.DictReader((report / "differences.csv").read_text().splitlines())
    pairs = {(row["first"], row["second"]) for row in rows}
    assert pairs >= {("DM (steps 2)", "DT (steps 2)"), ("DM (steps 4)", "DT (steps 4)")}
