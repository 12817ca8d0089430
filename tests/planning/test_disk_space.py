from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import run_sweep
from dmray.errors import StorageError
from dmray.planning.disk_space import require_space_for
from dmray.progress.trial_status import TrialStatus, trial_statuses
from dmray.records import SweepFolder
from dmray.space import free_bytes
from dmray.trial.checkpoints import load_checkpoint
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.run import run_trial
from tests.sweeps import tiny_plan
from tests.trial.jobs import job

MORE_THAN_THERE_IS_GIB = 1e9


def test_a_trial_stops_before_a_checkpoint_that_would_fill_the_disk_and_keeps_the_previous_one(tmp_path: Path) -> None:
    class Fills(Exception):
        pass

    def stop_at_20(step: int, score: float | None) -> None:
        if step == 20:
            raise Fills

    with pytest.raises(Fills):
        run_trial(job(tmp_path), InlineEvaluation(), stop_at_20)
    full = job(tmp_path, faults={"checkpoint_every_steps": 10, "min_free_gib": MORE_THAN_THERE_IS_GIB})
    with pytest.raises(StorageError, match=r"less than faults.min_free_gib .* continue with --resume"):
        run_trial(full, InlineEvaluation())
    assert load_checkpoint(full.folder.last_checkpoint)["trainer"]["step"] == 20
    assert run_trial(job(tmp_path), InlineEvaluation()).step == 40


def test_a_sweep_that_would_fill_the_disk_does_not_start(tmp_path: Path) -> None:
    planned = tiny_plan(tmp_path, faults={"min_free_gib": MORE_THAN_THERE_IS_GIB})
    folder = SweepFolder(tmp_path, "tiny")
    with pytest.raises(StorageError, match=r"GiB free, but the trials to run need about .* Choose another --storage"):
        run_sweep(planned, folder, LocalRunner(), lambda sweep: sweep.path, resume=False, console=Console(quiet=True))
    assert set(trial_statuses(planned, folder).values()) == {TrialStatus.WAITING}


def test_the_check_can_be_turned_off_and_counts_only_what_is_to_be_run(tmp_path: Path) -> None:
    off = tiny_plan(tmp_path, faults={"min_free_gib": 0})
    require_space_for(off.trials, off.sweep, tmp_path)
    almost_all = free_bytes(tmp_path) / 2**30 - 0.5
    some = tiny_plan(tmp_path, faults={"min_free_gib": almost_all})
    require_space_for(some.trials, some.sweep, tmp_path)
    huge = tiny_plan(
        tmp_path,
        faults={"min_free_gib": almost_all},
        grid=[{"methods": ["dt"], "models": [{"d_model": 2048, "n_layer": 24}]}],
    )
    with pytest.raises(StorageError):
        require_space_for(huge.trials, huge.sweep, tmp_path)


def test_free_space_is_that_of_the_nearest_existing_folder(tmp_path: Path) -> None:
    assert abs(free_bytes(tmp_path / "not" / "yet") - shutil.disk_usage(tmp_path).free) < 2**32
