from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import run_sweep
from dmray.errors import SpecError
from dmray.planning.trial_filter import TrialFilter
from dmray.progress.trial_status import TrialStatus
from dmray.records import SweepFolder
from dmray.specs import TrialSpec
from tests.mlflow_mirror.examples import whole_trial, write_ledger
from tests.sweeps import tiny_plan

KILLED = """
import os, signal, sys
from pathlib import Path
from dmray.files import partial
with partial(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_killed_writers_left_is_removed_when_the_sweep_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dmray")
    plan, folder = tiny_plan(tmp_path, training={"steps": 10, "batch_size": 4}), SweepFolder(tmp_path, "tiny")
    trial = folder.trial(plan.trial_ids[0])
    for place in (folder.manifest, folder.datasets / "data.hdf5", trial.last_checkpoint, trial.episode_table(5)):
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-c", KILLED, str(place)], check=False)
    assert len(list(tmp_path.rglob("*.part"))) == 4
    states = run_sweep(plan, folder, LocalRunner(), lambda sweep: sweep.report, resume=True)
    assert set(states.values()) == {TrialStatus.FINISHED}
    assert list(tmp_path.rglob("*.part")) == []
    assert f"{folder.path}: no sweep was started there before; it starts now" in caplog.messages


class NoRunner:
    """Nothing is to be run."""

    def run(self, *given: object) -> Sequence[TrialSpec]:
        raise AssertionError("a trial was started")


def test_a_start_without_anything_to_run_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="dmray")
    plan, folder = tiny_plan(tmp_path, seeds=[0, 1]), SweepFolder(tmp_path, "tiny")

    def start(trial_filter: TrialFilter) -> list[str]:
        caplog.clear()
        run_sweep(plan, folder, NoRunner(), lambda sweep: sweep.report, resume=True, trial_filter=trial_filter)
        return [record.message for record in caplog.records if "run" in record.message]

    with pytest.raises(SpecError, match=r"retry_failed: no selected trial of .*tiny has failed; .* the 4 that have"):
        start(TrialFilter(retry_failed=True))
    assert not folder.manifest.exists()
    ended = [trial for trial in plan.trials if trial.method == "dt"]
    for trial in ended:
        write_ledger(folder, trial, whole_trial(1.0, 2.0))
    assert start(TrialFilter(only="method=dt")) == ["nothing to run: 2 of 2 trials are done"]
