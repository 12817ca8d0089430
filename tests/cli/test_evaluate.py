from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from dmray.cli.evaluate import app
from dmray.inference import evaluation
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.planning.manifest import write_manifest
from dmray.planning.plan import Plan
from dmray.records import EvaluationDone, SweepFolder, read_episode_table, read_ledger
from dmray.rollout import EpisodeRecord, run_cohort
from dmray.rollout.film import Clip
from dmray.tasks import Task
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.job import TrialJob
from dmray.trial.run import run_trial
from tests.sweeps import tiny_plan


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A finished sweep: DM and DT on maze2d-open."""
    storage = tmp_path_factory.mktemp("storage")
    plan = tiny_plan(storage)
    folder = SweepFolder(storage, plan.sweep.name)
    for trial in plan.trials:
        run_trial(TrialJob.of(trial, plan.sweep, folder), InlineEvaluation())
    return folder


def trial_path(folder: SweepFolder, method: str) -> Path:
    return next(path for path in (folder.path / "trials").iterdir() if f"-{method}-" in path.name)


@pytest.mark.parametrize("method", ["dm", "dt"])
@pytest.mark.parametrize("place", ["", "checkpoints/final.pt", "checkpoints/last.pt"])
def test_a_stored_policy_gives_its_recorded_returns_to_the_last_digit(
    folder: SweepFolder, method: str, place: str
) -> None:
    done = evaluate(str(trial_path(folder, method) / place))
    assert done.exit_code == 0, done.output
    assert "The sweep recorded the same returns, to the last digit" in done.output
    assert "after 40 steps" in done.output


def test_the_best_checkpoint_has_its_own_step(folder: SweepFolder) -> None:
    done = evaluate(str(trial_path(folder, "dm") / "checkpoints" / "best.pt"))
    assert "to the last digit" in done.output


def test_every_stored_checkpoint_of_a_trial_is_one_table(folder: SweepFolder) -> None:
    done = evaluate(str(trial_path(folder, "dm")), "--checkpoint", "all", "--episodes", "2")
    assert done.exit_code == 0, done.output
    rows = [line.split()[:2] for line in done.output.splitlines() if line.split()[:1] in (["best"], ["final"])]
    assert rows[-1] == ["final", "40"]
    assert [name for name, _ in rows] == ["best", "final"]


def test_a_sweep_is_evaluated_again_by_the_same_command(folder: SweepFolder) -> None:
    plan = tiny_plan(folder.storage)
    write_manifest(plan, folder)
    done = evaluate(str(folder.path), "--local", "--decode", "recurrent", "--episodes", "2")
    assert done.exit_code == 0, done.output
    assert "2 evaluations (0 were there already)" in done.output
    assert all(trial.trial_id in done.output for trial in plan.trials)
    refused = evaluate(str(folder.path), "--pictures", "1")
    assert "--pictures: " in refused.output
    assert "give the folder of one of its trials" in refused.output.replace("\n", " ")
    refused = evaluate(str(trial_path(folder, "dm")), "--only", "seed=0")
    assert "--only: " in refused.output


def test_processes_share_the_work_and_change_nothing(folder: SweepFolder, tmp_path: Path) -> None:
    for workers in (1, 2):
        path = tmp_path / f"{workers}.parquet"
        assert evaluate(str(trial_path(folder, "dm")), "--workers", str(workers), "--records", str(path)).exit_code == 0
    assert read_episode_table(tmp_path / "1.parquet") == read_episode_table(tmp_path / "2.parquet")


@pytest.mark.parametrize("option", [(), ("--deterministic",)])
def test_algorithms_are_those_of_the_sweep_that_is_asked_for(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...]
) -> None:
    seen: list[bool] = []

    def watched(*given: Any) -> tuple[EpisodeRecord, ...]:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return run_cohort(*given)

    monkeypatch.setattr(evaluation, "run_cohort", watched)
    assert evaluate(str(trial_path(folder, "dm")), *option).exit_code == 0
    assert set(seen) == {bool(option)}
    assert not torch.are_deterministic_algorithms_enabled(), "and afterwards as before"


def test_options_change_what_is_evaluated(folder: SweepFolder, tmp_path: Path) -> None:
    path = tmp_path / "episodes.parquet"
    options = ("--episodes", "3", "--seed", "9", "--target", "10", "--target", "20", "--records", str(path))
    done = evaluate(str(trial_path(folder, "dt")), *options)
    assert done.exit_code == 0, done.output
    assert "last digit" not in done.output
    table = read_episode_table(path)
    rows, about = table.to_pylist(), {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert [row["target_return"] for row in rows] == [10.0] * 3 + [20.0] * 3
    assert about["evaluation_seed"] == "9"
    assert about["protocol"] == "made", "its data are recorded"
    assert "(made, " in done.output


def test_pictures_of_the_scored_episodes_lie_with_the_trial(folder: SweepFolder) -> None:
    place = trial_path(folder, "dm")
    done = evaluate(str(place), "--pictures", "2")
    assert done.exit_code == 0, done.output
    assert "to the last digit" in done.output
    names = [f"{place.name}-step40-{what}.png" for what in ("episodes", "overview")]
    assert sorted(path.name for path in (place / "pictures").iterdir()) == names


def test_pictures_go_where_they_are_wanted(folder: SweepFolder, tmp_path: Path) -> None:
    best = trial_path(folder, "dt") / "checkpoints" / "best.pt"
    assert evaluate(str(best), "--pictures", "1", "--into", str(tmp_path)).exit_code == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2


def test_more_pictures_than_the_first_cohort_has_are_refused(folder: SweepFolder, tmp_path: Path) -> None:
    done = evaluate(str(trial_path(folder, "dm")), "--pictures", "3", "--into", str(tmp_path))
    assert done.exit_code == 1
    assert "at most 2, the number of episodes in the first cohort" in done.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dm", ["--decode", "strem:2"], "unknown decode mode 'strem:2', did you mean 'stream:2'?"),
        ("dm", ["--target", "5"], "target return 5: DM takes no target return"),
        ("dm", ["--checkpoint", "bset"], "checkpoint 'bset': give one of final, best"),
        ("dm", ["--checkpoint", "step:20"], "no checkpoint 'step:20'; there are best, final, last"),
        ("dt", ["--records", "/proc/nowhere/episodes.parquet"], "/proc/nowhere/episodes.parquet: cannot be written"),
    ],
)
def test_an_option_that_cannot_be_followed_is_refused_before_anything_is_run(
    folder: SweepFolder, method: str, options: list[str], message: str
) -> None:
    done = evaluate(str(trial_path(folder, method)), *options)
    assert done.exit_code == 1
    assert message in done.output.replace("\n", " ")
    assert "raw return" not in done.output


def test_a_file_that_is_no_checkpoint_is_told_without_advice_to_remove_it(folder: SweepFolder, tmp_path: Path) -> None:
    (tmp_path / "data.hdf5").write_bytes(b"no checkpoint")
    assert "not a dmray checkpoint, or a truncated one" in evaluate(str(tmp_path / "data.hdf5")).output.replace(
        "\n", " "
    )


def test_fewer_episodes_than_the_sweeps_quick_ones_can_be_asked_for(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, evaluation={"episodes": 4, "every_steps": 40, "quick_episodes": 3})
    trial, folder = plan.trials[0], SweepFolder(tmp_path, plan.sweep.name)
    run_trial(TrialJob.of(trial, plan.sweep, folder), InlineEvaluation())
    done = evaluate(str(folder.trial(trial.trial_id).path), "--episodes", "2")
    assert done.exit_code == 0, done.output
    assert "2 episodes" in done.output


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    done = evaluate(str(tmp_path))
    assert done.exit_code == 1
    assert "no checkpoint; give a file" in done.output.replace("\n", " ")


def mirrored(folder: SweepFolder) -> tuple[Plan, str]:
    """The sweep in an MLflow of its own, whose address is given."""
    plan = tiny_plan(folder.storage, tracking={"log_every_steps": 10})
    MlflowMirror.open(None, folder, plan.sweep, plan.trials).close()
    return plan, f"sqlite:///{folder.mlflow_database}"


def run_of_dm(uri: str) -> tuple[Any, Any]:
    """A client of MLflow, and the run of the trial of DM."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "dmray/tiny"]
    found = client.search_runs([experiment.experiment_id], "tags.`dmray.level` = 'trial' and tags.method = 'dm'")
    return client, found[0]


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's queries, not ours
def test_a_trial_is_evaluated_from_its_mlflow_run_which_gets_its_pictures(
    folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, uri = mirrored(folder)
    client, run = run_of_dm(uri)
    assert [each.path for each in client.list_artifacts(run.info.run_id, "evaluations")] == [
        "evaluations/step_000000040.parquet"
    ]
    ledger = read_ledger(folder.trial(plan.trials[0].trial_id).ledger)
    recorded = [record for record in ledger if isinstance(record, EvaluationDone)]
    monkeypatch.chdir(tmp_path)
    for which in ("final", "best"):
        done = evaluate(f"runs:/{run.info.run_id}", "--mlflow-uri", uri, "--checkpoint", which, "--pictures", "1")
        assert done.exit_code == 0, done.output
        assert f"{recorded[-1].first_target.normalized_mean:.2f}" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]  # no database of MLflow's own making
    drawn = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert drawn <= {Path(each.path).name for each in client.list_artifacts(run.info.run_id, "pictures")}


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's queries, not ours
def test_films_reach_the_mlflow_run_at_once_or_with_the_next_replay(
    folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def film(task: Task, clips: Sequence[Clip], paths: Sequence[Path]) -> None:
        """As `write_films`, where nothing can draw."""
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(path.name.encode())

    monkeypatch.setattr("dmray.rollout.pictures.write_films", film)
    monkeypatch.chdir(tmp_path)
    _, uri = mirrored(folder)
    client, run = run_of_dm(uri)

    def films() -> list[str]:
        return [each.path for each in client.list_artifacts(run.info.run_id, "videos")]

    name = f"videos/{trial_path(folder, 'dm').name}-step40-episode"
    assert evaluate(run.info.run_id, "--mlflow-uri", uri, "--video", "1").exit_code == 0
    assert films() == [f"{name}0.mp4"]
    assert evaluate(str(trial_path(folder, "dm")), "--video", "2").exit_code == 0
    assert films() == [f"{name}0.mp4"], "the trial's folder was evaluated, and knows no run"
    mirrored(folder)
    assert films() == [f"{name}0.mp4", f"{name}1.mp4"]
    got = Path(client.download_artifacts(run.info.run_id, f"{name}1.mp4", str(tmp_path)))
    assert got.read_bytes() == got.name.encode()


def test_a_run_that_mlflow_does_not_know_is_told(folder: SweepFolder, tmp_path: Path) -> None:
    done = evaluate("0" * 32)
    assert done.exit_code == 1
    assert "--mlflow-uri" in done.output
