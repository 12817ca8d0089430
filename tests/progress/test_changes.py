from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dmray.errors import StorageError
from dmray.planning.manifest import write_manifest
from dmray.progress.changes import changes
from dmray.progress.trial_status import TrialStatus
from dmray.records import SweepFolder
from dmray.specs import IDENTITY_VERSION
from tests.sweeps import tiny_plan


def change(tmp_path: Path, **now: Any) -> str:
    """What is said after a start with DM and DT under seeds 0 and 1, all DM finished."""
    folder, before = SweepFolder(tmp_path, "tiny"), tiny_plan(tmp_path, seeds=[0, 1])
    write_manifest(before, folder)
    planned = tiny_plan(tmp_path, **{"seeds": [0, 1], **now})
    kept = {t.trial_id for t in before.trials if t.method == "dm"}
    states = {name: TrialStatus.FINISHED if name in kept else TrialStatus.WAITING for name in planned.trial_ids}
    return str(changes(planned, folder, states))


STEPS = {"steps": 80, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5}
SIZE = {"d_model": 16, "n_layer": 1, "context_length": 4}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({}, "2 done kept, 2 to be continued or run as before"),
        ({"seeds": [0, 1, 2]}, "2 done kept, 2 to be continued or run as before, 2 new"),
        ({"seeds": [1]}, "1 done kept, 1 to be continued or run as before, 2 gone (their folders stay)"),
        ({"training": STEPS}, "0 done kept, 4 new (training.steps 40 -> 80), 4 gone (their folders stay)"),
        ({"resources": {"evaluation_actors": 3}}, "2 done kept, 2 to be continued or run as before"),
        (
            {"grid": [{"methods": ["dm"], "models": [SIZE, SIZE | {"n_layer": 2}]}]},
            "2 done kept, 2 new, 2 gone (their folders stay)",
        ),
        (
            {"grid": [{"methods": ["dm", "dt"], "models": [SIZE | {"n_layer": 2, "d_model": 32}]}]},
            "0 done kept, 4 new (model.d_model 16 -> 32, model.n_layer 1 -> 2), 4 gone (their folders stay)",
        ),
    ],
)
def test_a_changed_sweep_file_says_what_is_kept_new_and_gone(tmp_path: Path, now: dict[str, Any], said: str) -> None:
    assert change(tmp_path, **now) == said


def test_trials_that_ended_before_the_last_change_are_kept_when_the_file_is_changed_back(tmp_path: Path) -> None:
    folder, planned = SweepFolder(tmp_path, "tiny"), tiny_plan(tmp_path)
    write_manifest(tiny_plan(tmp_path, training=STEPS), folder)
    said = changes(planned, folder, dict.fromkeys(planned.trial_ids, TrialStatus.FINISHED))
    assert str(said) == "2 done kept, 2 gone (their folders stay)"


def test_a_data_sets_path_is_no_change(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "tiny")
    own = {"name": "mine", "task": "maze2d-open", "path": "/here.hdf5"}
    write_manifest(tiny_plan(tmp_path, datasets=[own]), folder)
    moved = tiny_plan(tmp_path, datasets=[own | {"path": "/there.hdf5"}])
    said = changes(moved, folder, dict.fromkeys(moved.trial_ids, TrialStatus.FINISHED))
    assert said is not None
    assert not said.any


def test_a_folder_that_was_never_started_has_nothing_to_compare_with(tmp_path: Path) -> None:
    planned = tiny_plan(tmp_path)
    assert changes(planned, SweepFolder(tmp_path, "tiny"), {}) is None


@pytest.mark.parametrize("version", [None, IDENTITY_VERSION - 1, IDENTITY_VERSION + 1])
def test_a_sweep_of_another_version_is_refused_with_what_to_do(tmp_path: Path, version: int | None) -> None:
    """Its trials have other ids, so a start would run all of them again beside their results."""
    folder, planned = SweepFolder(tmp_path, "tiny"), tiny_plan(tmp_path)
    write_manifest(planned, folder)
    manifest = json.loads(folder.manifest.read_bytes())
    del manifest["identity_version"]  # as before it was recorded
    manifest["trials"][0]["model"]["a_field_of_that_version"] = 1
    folder.manifest.write_text(json.dumps(manifest | ({} if version is None else {"identity_version": version})))
    with pytest.raises(StorageError, match=r"with other trial ids \(identity_version .* give another --storage"):
        changes(planned, folder, dict.fromkeys(planned.trial_ids, TrialStatus.WAITING))


def test_a_field_that_this_version_added_is_no_change(tmp_path: Path) -> None:
    folder, planned = SweepFolder(tmp_path, "tiny"), tiny_plan(tmp_path)
    write_manifest(planned, folder)
    manifest = json.loads(folder.manifest.read_bytes())
    for trial in manifest["trials"]:  # as a version wrote it that did not have this field
        del trial["training"]["dtype"]
    folder.manifest.write_text(json.dumps(manifest))
    found = changes(planned, folder, dict.fromkeys(planned.trial_ids, TrialStatus.FINISHED))
    assert found is not None
    assert (found.done_kept, found.any) == (2, False)
