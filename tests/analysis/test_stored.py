"""Every way to name stored policies finds them, once each, with the data that they were trained on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dmray
from dmray.analysis.stored import find_policies, open_data
from dmray.cli.analyze import app
from dmray.errors import DatasetError, SpecError, StorageError
from dmray.planning.manifest import write_manifest
from dmray.records import SweepFolder
from tests.sweeps import tiny_plan


def test_a_sweep_its_trials_and_their_files_name_the_same_policies(
    ran: dmray.SweepRun, trial_folders: dict[str, Path]
) -> None:
    sweep = str(ran.folders[0].path)
    folders = [str(folder) for folder in trial_folders.values()]
    files = [f"{folder}/checkpoints/final.pt" for folder in folders]
    named = [[stored.load() for stored in find_policies(sources).policies] for sources in ([sweep], folders, files)]
    assert [[policy.trial.trial_id for policy in policies] for policies in named] == [list(ran.plan.trial_ids)] * 3
    assert {policy.step for policies in named for policy in policies} == {40}
    assert len(find_policies([sweep, *folders]).policies) == 2, "each once"


def test_policies_are_in_the_order_of_their_sweep_however_they_are_named(
    ran: dmray.SweepRun, trial_folders: dict[str, Path], tmp_path: Path
) -> None:
    first, second = (str(ran.trial_folder(trial_id)) for trial_id in ran.plan.trial_ids)
    other = tmp_path / "other.pt"
    shutil.copy(f"{first}/checkpoints/final.pt", other)
    found = find_policies([f"{second}/checkpoints/final.pt", str(other), first])
    assert [policy.source for policy in found.policies] == [first, f"{second}/checkpoints/final.pt", str(other)]


def test_the_data_are_those_of_the_training(ran: dmray.SweepRun, trial_folders: dict[str, Path]) -> None:
    policy = find_policies([str(trial_folders["dm"])]).policies[0].load()
    opened = open_data(policy)
    assert opened.episodes.fingerprint == policy.dataset_fingerprint
    with pytest.raises(DatasetError, match=r"its content is not that on which DM of .* was trained"):
        open_data(replace(policy, dataset_fingerprint="other"))


def test_a_checkpoint_that_is_named_twice_counts_once(trial_folders: dict[str, Path], tmp_path: Path) -> None:
    """By its folder, by its file and as the same trial of another sweep; no setting is told apart by its step."""
    folder = trial_folders["dm"]
    copy = tmp_path / "other" / "trials" / folder.name
    shutil.copytree(folder, copy)
    made = dmray.analyze_decay([folder, folder / "checkpoints" / "final.pt", copy], windows=2)
    assert len(made.lengths) == len(dmray.analyze_decay(folder, windows=2).lengths)
    assert set(made.lengths["setting"]) == {""}
    assert len(made.left_out) == 2
    assert all(f"the same trial and step as {folder}, so it is not counted again" in text for text in made.left_out)


def test_trials_without_a_checkpoint_are_one_sentence_however_many_they_are(tmp_path: Path) -> None:
    planned = tiny_plan(tmp_path, seeds=list(range(5)))
    folder = SweepFolder(tmp_path, planned.sweep.name)
    folder.path.mkdir()
    write_manifest(planned, folder)
    first = ", ".join(planned.trial_ids[:3])
    with pytest.raises(StorageError) as refused:
        find_policies([str(folder.path)])
    said = f"{first} and 7 more trials: no checkpoint 'final'; there are none"
    assert str(refused.value) == f"no trial has a checkpoint 'final': {said}"


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    trial_folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for analyze in (dmray.analyze_decay, dmray.analyze_subgoals):
        with pytest.raises(StorageError, match=r"^into .*/file/deeper: cannot be written: Not a directory; give"):
            analyze(trial_folders["dm"], into=tmp_path / "file" / "deeper", progress=_no_progress)  # type: ignore[operator]


def _no_progress(done: int, total: int) -> None:
    raise AssertionError("a policy was measured")


def test_the_commands_take_the_mlflow_server_that_the_message_asks_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    for question in ("decay", "subgoals"):
        asked = CliRunner().invoke(app, [question, "0" * 32])
        assert "name it with --mlflow-uri" in " ".join(asked.output.split())
        given = CliRunner().invoke(app, [question, "0" * 32, "--mlflow-uri", "nonsense://server"])
        assert given.exit_code == 1
        assert "nonsense" in given.output


def test_a_server_without_an_mlflow_run_is_an_error(trial_folders: dict[str, Path]) -> None:
    with pytest.raises(SpecError, match="mlflow_uri http://h: no run is the id of an MLflow run; leave it out"):
        find_policies([str(trial_folders["dm"])], mlflow_uri="http://h")


def test_what_is_not_there_is_said(ran: dmray.SweepRun, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no trial has a checkpoint 'step:10': .*there are best, final"):
        find_policies([str(ran.folders[0].path)], "step:10")
    with pytest.raises(SpecError, match="checkpoint 'newest': give one of final, best"):
        find_policies([str(ran.folders[0].path)], "newest")
    with pytest.raises(StorageError, match="no such file or folder"):
        find_policies([str(tmp_path / "nowhere")])
    nowhere = ran.folders[0].path / "trials" / "nowhere"
    with pytest.raises(StorageError, match=r"/nowhere: no such folder of a trial; the sweep's trials are in "):
        find_policies([str(nowhere)])
