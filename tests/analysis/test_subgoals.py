"""The analysis of stored HDM and HDT policies, from checkpoints to tables, figures and the summary."""

from __future__ import annotations

import pickle
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import dmray
from dmray.analysis.subgoal_measures import (
    BASELINES,
    FED_BACK,
    LABEL,
    MEAN,
    PREDICTED,
    SOURCES,
    Measured,
)
from dmray.analysis.subgoal_results import RunSubgoals, group_runs
from dmray.analysis.subgoal_sources import (
    FED,
    NearestLabels,
    PresentStates,
    RandomStates,
    Remembered,
    remember,
    scores_by_source,
)
from dmray.analysis.subgoals import nearer_sentence
from dmray.cli.analyze import app
from dmray.datasets import subgoal_rows
from dmray.errors import SpecError
from dmray.reporting.aggregates import interval_of_runs
from dmray.specs import DatasetSpec, EvaluationSpec, TrainingSpec, TrialSpec
from dmray.terminal import SafeConsole
from dmray.trial.checkpoints import rewrite_checkpoint
from tests.analysis.examples import walk
from tests.policies.windows import config_of
from tests.sweeps import tiny_sweep


@pytest.fixture(scope="module")
def hierarchical(tmp_path_factory: pytest.TempPathFactory) -> dmray.SweepRun:
    """A finished sweep of HDM and DM on maze2d-open."""
    sweep = tiny_sweep(
        tmp_path_factory.mktemp("hierarchical"),
        grid=[{"methods": ["hdm", "dm"], "models": [{"d_model": 8, "n_layer": 1, "context_length": 4}]}],
        seeds=[0, 1],
        training={"steps": 4, "batch_size": 4, "warmup_steps": 1, "subgoal_target": "difference"},
        evaluation={"episodes": 2, "every_steps": 4, "cohort_size": 2},
    )
    return dmray.run_sweep(sweep, local=True, progress=False)


@pytest.fixture(scope="module")
def analysis(hierarchical: dmray.SweepRun) -> dmray.SubgoalAnalysis:
    return dmray.analyze_subgoals(hierarchical.folders[0].path, stretches=3, length=10, episodes=2)


def test_every_run_with_subgoals_is_measured_beside_the_baselines(analysis: dmray.SubgoalAnalysis) -> None:
    runs, settings = analysis.tables["runs"], analysis.tables["settings"]
    assert len(runs) == 2 * len(SOURCES)
    assert set(runs["setting"]) == {"HDM"}
    labels = runs[runs["source"] == LABEL]
    assert (labels["to_label"] == 0).all()
    assert (runs[runs["source"] == MEAN]["different"] == 1).all()
    assert (runs.groupby("source")["to_visited"].nunique().drop([PREDICTED, FED_BACK]) == 1).all(), (
        "the same for all runs"
    )
    assert (settings["seeds"] == 2).all()
    predicted = settings[settings["source"] == PREDICTED]
    assert (predicted["to_label_low"] <= predicted["to_label"]).all()
    assert runs["reached"].between(0, 1).all()


def test_methods_without_subgoals_are_left_out_and_alone_are_refused(
    hierarchical: dmray.SweepRun, analysis: dmray.SubgoalAnalysis
) -> None:
    assert len(analysis.left_out) == 2, "the two seeds of DM"
    assert all("DM predicts no subgoals" in sentence for sentence in analysis.left_out)
    trial = next(trial for trial in hierarchical.plan.trials if trial.method == "dm")
    with pytest.raises(
        SpecError, match=r"^DM of .*: DM predicts no subgoals; give runs of a method that does: hdm, hdt$"
    ):
        dmray.analyze_subgoals(hierarchical.trial_folder(trial.trial_id))


def test_the_low_network_that_is_fed_its_own_predictions_has_the_recorded_scores(
    hierarchical: dmray.SweepRun, analysis: dmray.SubgoalAnalysis
) -> None:
    scores = analysis.tables["scores"]
    assert set(scores["fed"]) == set(FED)
    recorded = dmray.load_results(hierarchical.folders[0].path).trials
    for setting in analysis.settings:
        for run in setting.runs:
            row = recorded[recorded["trial_id"] == run.trial.trial_id].iloc[0]
            assert float(run.scores[PREDICTED].mean()) == pytest.approx(row["last_normalized_score"], abs=1e-6)


def test_the_summary_fits_a_terminal_of_80_columns(analysis: dmray.SubgoalAnalysis) -> None:
    shown = StringIO()
    SafeConsole(file=shown, width=80).print(analysis)
    lines = [line.rstrip() for line in shown.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    assert any(row[:2] == ["label", "0.00"] and len(row) == 6 for row in rows), "a table, not one cell a line"
    assert any(row[:1] == ["HDM"] and len(row) == 5 for row in rows), "its scores by source"


def test_the_command_writes_tables_figures_and_the_summary(hierarchical: dmray.SweepRun, tmp_path: Path) -> None:
    source, into = str(hierarchical.folders[0].path), tmp_path / "out"
    options = ["--stretches", "2", "--length", "5", "--into", str(into)]
    result = CliRunner().invoke(app, ["subgoals", source, *options])
    assert result.exit_code == 0, result.output
    assert "Subgoals of open-expert" in result.stdout
    names = {path.name for path in into.iterdir()}
    assert {"runs.csv", "settings.csv", "reach.csv", "distances-open-expert.png", "reach-open-expert.svg"} <= names
    assert "scores.csv" not in names, "no episodes were asked for"
    assert len([name for name in names if name.startswith("picture-") and name.endswith(".png")]) == 1
    assert len(pd.read_csv(into / "runs.csv")) == 2 * len(SOURCES)


def test_a_data_set_that_is_missing_does_not_end_the_analysis_of_the_others(
    hierarchical: dmray.SweepRun, tmp_path: Path
) -> None:
    trial = next(trial for trial in hierarchical.plan.trials if trial.method == "hdm")
    folder = hierarchical.trial_folder(trial.trial_id)
    gone = DatasetSpec(name="gone", task="maze2d-open", path=str(tmp_path / "gone.hdf5"))
    on_gone = trial.model_copy(update={"dataset": gone})
    rewrite_checkpoint(folder / "checkpoints/final.pt", tmp_path / "gone.pt", on_gone)
    made = dmray.analyze_subgoals([tmp_path / "gone.pt", folder], stretches=2, length=5)
    assert set(made.tables["runs"]["dataset"]) == {"open-expert"}
    assert [each.partition("gone.hdf5")[0] for each in made.failed] == [
        f"data set gone (1 policy) is not analysed: {tmp_path}/"
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radius": 0.0}, "radius 0"),
        ({"within": 0}, "within 0"),
        ({"episodes": -1}, "episodes -1"),
        ({"runs": []}, "runs"),
    ],
)
def test_a_wrong_argument_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=f"^{message}"):
        dmray.analyze_subgoals(**({"runs": "nowhere"} | changes))  # type: ignore[arg-type]


def run_of(seed: int, to_label: float, step: int = 10, fingerprint: str = "a1b2c3d4") -> RunSubgoals:
    """A run whose baselines are at 2 (previous label), 3 (later), 4 (mean) and 5 (present)."""
    trial = TrialSpec(
        dataset=DatasetSpec(name="maze2d-umaze-v1"),
        method="hdm",
        model=config_of("hdm"),
        seed=seed,
        training=TrainingSpec(),
        evaluation=EvaluationSpec(),
    )
    distances = {PREDICTED: to_label, FED_BACK: to_label, LABEL: 0.0}
    distances |= {source: 2.0 + place for place, source in enumerate(BASELINES)}
    measured = {source: Measured(value, 1.0, 0.5, 3, 2.0) for source, value in distances.items()}
    visited = {source: np.array([0.5, 1.5]) for source in SOURCES}
    return RunSubgoals(trial, step, fingerprint, 20, 1.0, measured, visited, {})


def test_the_sentence_follows_from_the_numbers() -> None:
    (all_nearer,) = group_runs([run_of(0, 1.0), run_of(1, 1.5)])
    assert (
        nearer_sentence(all_nearer)
        == "HDM: its subgoals, fed back, are nearer to their labels than every baseline in all of 2 runs."
    )
    (some,) = group_runs([run_of(0, 2.5), run_of(1, 1.5)])
    assert nearer_sentence(some) == (
        "HDM: of 2 runs, its subgoals, fed back, are nearer to their labels than the previous label in 1, "
        "the random later state in 2, the mean state in 2, the present state in 2."
    )


def test_checkpoints_of_one_trial_and_other_data_are_settings_of_their_own() -> None:
    steps = group_runs([run_of(0, 1.0, step=10), run_of(0, 1.0, step=20)])
    assert [setting.label for setting in steps] == ["HDM, step 10", "HDM, step 20"]
    data = group_runs([run_of(0, 1.0), run_of(1, 1.0, fingerprint="ffff0000")])
    assert [each.dataset for each in data] == ["maze2d-umaze-v1 (data a1b2c3d4)", "maze2d-umaze-v1 (data ffff0000)"]
    best = group_runs([run_of(0, 1.0, step=10), run_of(1, 1.0, step=20)])
    assert len(best) == 1, "the best steps of two seeds are one setting"


class PicklingPool:
    """What a pool of processes needs of the work, in this process."""

    def map(self, work: Any, items: Any) -> Any:
        return map(pickle.loads(pickle.dumps(work)), pickle.loads(pickle.dumps(items)))


def test_processes_share_the_sources_and_change_no_score(hierarchical: dmray.SweepRun) -> None:
    trials = hierarchical.trials
    policy = dmray.load_policy(hierarchical.trial_folder(trials[trials.method == "hdm"].trial_id.iloc[0]))
    states = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    given = (policy, Remembered(states, states[::-1], np.ones(4)), 2, 1, 0)
    alone, shared = scores_by_source(*given), scores_by_source(*given, PicklingPool())  # type: ignore[arg-type]
    assert list(alone) == list(shared) == list(FED)
    assert all(np.array_equal(alone[fed], shared[fed]) for fed in FED)
    with pytest.raises(SpecError, match="workers: only with episodes"):
        dmray.analyze_subgoals(hierarchical.folders[0].path, workers=2)


def test_labels_come_from_the_nearest_state_of_the_data() -> None:
    episodes = walk(10)
    remembered = remember(episodes, subgoal_rows(episodes), np.full(3, 2.0), seed=0)
    assert len(remembered.states) == 9, "without the last one of the episode"
    source = NearestLabels(remembered)
    observations = np.array([[3.2, 3.0, 3.1], [7.9, 8.0, 8.3]], np.float32)
    expected = episodes.observations[subgoal_rows(episodes)[[3, 8]]]
    np.testing.assert_array_equal(source.subgoals(observations), expected)
    np.testing.assert_array_equal(PresentStates().subgoals(observations), observations)


def test_random_states_are_held_and_do_not_depend_on_the_episodes_that_have_ended() -> None:
    states = np.arange(300, dtype=np.float32).reshape(100, 3)
    remembered = Remembered(states, states, np.ones(3))
    whole, part = (RandomStates(remembered, episodes=3, held=2, seed=5) for _ in range(2))
    seen = [whole.subgoals(np.zeros((3, 3))) for _ in range(6)]
    np.testing.assert_array_equal(seen[0], seen[1])
    assert (seen[1] != seen[2]).any()
    first = part.subgoals(np.zeros((3, 3)))
    part.keep(np.array([2, 0]))
    later = [part.subgoals(np.zeros((2, 3))) for _ in range(5)]
    for mine, others in zip([first[[2, 0]], *later], seen, strict=True):
        np.testing.assert_array_equal(mine, others[[2, 0]])


def test_an_interval_is_over_episodes_and_over_runs() -> None:
    draw = np.random.default_rng(0)
    same = [draw.normal(50, 1, 100) for _ in range(4)]
    low, high = interval_of_runs(same) or (0.0, 0.0)
    assert low < 50 < high
    assert high - low < 1.0
    apart = [scores + 20 * number for number, scores in enumerate(same)]
    wide = interval_of_runs(apart) or (0.0, 0.0)
    assert wide[1] - wide[0] > 20, "runs that differ make it wide"
    one = interval_of_runs(same[:1]) or (0.0, 0.0)
    assert abs((one[1] - one[0]) - 4 / 10) < 0.1, "four standard errors of 100 episodes"
    assert interval_of_runs([np.array([3.0])]) is None
