"""Every way to name stored policies finds them, once each, with the data that they were trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import dmray
from dmray.analysis.stored import find_policies, open_data
from dmray.errors import DatasetError, SpecError, StorageError


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


def test_the_data_are_those_of_the_training(ran: dmray.SweepRun, trial_folders: dict[str, Path]) -> None:
    policy = find_policies([str(trial_folders["dm"])]).policies[0].load()
    opened = open_data(policy)
    assert opened.episodes.fingerprint == policy.dataset_fingerprint
    with pytest.raises(DatasetError, match=r"its content is not that on which DM of .* was trained"):
        open_data(replace(policy, dataset_fingerprint="other"))


def test_what_is_not_there_is_said(ran: dmray.SweepRun, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no trial has a checkpoint 'step:10': .*it has best, final"):
        find_policies([str(ran.folders[0].path)], "step:10")
    with pytest.raises(SpecError, match="checkpoint 'newest': give one of final, best"):
        find_policies([str(ran.folders[0].path)], "newest")
    with pytest.raises(StorageError, match="no such file or folder"):
        find_policies([str(tmp_path / "nowhere")])
