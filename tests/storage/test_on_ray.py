"""A sweep on Ray whose machines share nothing but a store. (file:// is as much a store as s3:// is.)"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from dmray.driver.session import run_sweep
from dmray.on_ray import RayRunner
from dmray.progress.trial_status import TrialStatus
from dmray.records import SweepFolder
from dmray.storage import Store, sweep_folder
from tests.sweeps import tiny_plan


@pytest.mark.ray
def test_a_sweep_on_ray_keeps_its_files_in_a_store(ray_session: None, tmp_path: Path) -> None:
    plan = tiny_plan(
        f"file://{tmp_path}/store",
        grid=[{"methods": ["dm"], "models": [{"d_model": 16, "n_layer": 1}]}],
        resources={"executor": "tune"},  # a test of seconds; "train" keeps its files there by the same words
    )
    folder = sweep_folder(plan.sweep.storage, "tiny", "driver")

    def no_report(folder: SweepFolder) -> Path:
        return folder.report

    states = run_sweep(plan, folder, RayRunner(), no_report, resume=False, console=Console(file=io.StringIO()))
    assert set(states.values()) == {TrialStatus.FINISHED}
    store = Store(f"file://{tmp_path}/store/tiny")
    assert f"trials/{plan.trial_ids[0]}/DONE.json" in store.list("trials")
    assert store.list("ray") == {}
