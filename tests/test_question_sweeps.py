"""The sweep files of docs/questions run at toy size and give what their pages name."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

import dmray
from dmray.cli import evaluate

SWEEPS = Path(__file__).parents[1] / "sweeps"
MAZE = "task: maze2d-open, generate: {behaviour: expert, transitions: 1500}"
TOY = [
    "training={steps: 2, batch_size: 2, warmup_steps: 1}",
    "evaluation={episodes: 1, every_steps: 2, target_returns: [50]}",
    "tracking.mlflow_uri=off",
    "overrides=[]",  # of data sets that are replaced
]


def run(name: str, storage: Path, *changes: str, only: str | None = None) -> dmray.SweepRun:
    sweep = dmray.load_sweep(SWEEPS / f"{name}.yaml", [*TOY, f"storage={storage}", *changes])
    results = dmray.run_sweep(sweep, local=True, progress=False, only=only)
    assert results.succeeded, results.errors
    return results


def test_the_sweep_of_returns_gives_the_effects_of_the_2_x_2(tmp_path: Path) -> None:
    toy = "grid.0.models=[{d_model: 8, n_layer: 1, context_length: 2}]"
    results = run("returns", tmp_path, f"datasets=[{{name: toy, {MAZE}}}]", toy, "seeds=[0]")
    assert {"backbone", "returns", "interaction", "DLSTM minus DM", "BC minus DM"} <= set(results.factorial.effect)
    assert "Rewards x backbone" in (results.report / "report.md").read_text()
    assert (results.report / "factorial.csv").exists()


def test_the_sweep_of_robustness_has_contexts_and_parts_and_is_evaluated_again_with_noise(tmp_path: Path) -> None:
    part = f"{{name: toy-part, {MAZE}, fraction: [0.5]}}"
    models = "grid.0.models=[{d_model: 8, n_layer: 1, context_length: [1, 20]}]"
    sets = f"datasets=[{{name: toy, {MAZE}}}, {part}]"
    parts = "overrides=[{datasets: ['*-part-*'], model: {context_length: 20}}]"
    results = run("robustness", tmp_path, sets, parts, models, "grid.0.methods=[dm, hdm]", "seeds=[0]")
    found = results.trials.groupby("dataset").context_length.unique().map(sorted).to_dict()
    assert found == {"toy": [1, 20], "toy-part-fraction-0.5": [20]}
    notes = [
        trial.provenance["dataset_notes"] for trial in results.collected.trials if "part" in trial.trial.dataset.name
    ]
    assert all(any(note.startswith("fraction 0.5: ") for note in each) for each in notes)
    again = ["--action-noise", "0.1", "--observation-noise", "0.1", "--only", "context_length=20", "--local"]
    done = CliRunner().invoke(evaluate.app, [str(results.folders[0].path), *again])
    assert done.exit_code == 0, done.output
    rows = dmray.load_results(results.folders[0].path).reevaluations
    assert (len(rows), set(rows.action_noise)) == (4, {0.1})
    assert "action noise 0.1, observation noise 0.1" in (results.report / "report.md").read_text()


def test_the_sweep_of_architectures_has_a_row_for_each_size(tmp_path: Path) -> None:
    changes = (f"datasets=[{{name: toy, {MAZE}}}]", "grid.0.methods=[dm]", "seeds=[0]")
    results = run("architecture", tmp_path, *changes, only="n_layer=1")  # the others are planned, and take longer
    assert len(results.scores) == len(set(results.scores.label)) == 8


def test_the_comparison_on_made_data_has_all_methods_and_its_own_protocol(tmp_path: Path) -> None:
    robot = "datasets=[{name: toy, task: hopper, generate: {behaviour: medium-replay, transitions: 200}}]"
    toy = "grid.0.models=[{d_model: 8, n_layer: 1, context_length: 2}]"
    results = run("offline_benchmark", tmp_path, robot, toy, "seeds=[0]")
    assert set(results.scores.method) == {"dt", "dt-r", "dm", "dm+r", "hdt", "hdm", "bc", "dlstm"}
    assert set(results.scores.protocol) == {"made"}


def test_a_wrong_level_of_noise_is_refused_by_the_command_line(tmp_path: Path) -> None:
    refused = CliRunner().invoke(evaluate.app, [str(tmp_path), "--action-noise", "-1"])
    assert refused.exit_code == 2
    assert "--action-noise" in refused.output
