from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dmray.driver.local_runner import LocalRunner
from dmray.driver.session import run_sweep
from dmray.progress.trial_status import TrialStatus
from dmray.records import SweepFolder
from tests.sweeps import tiny_plan

KILLED = """
import os, signal, sys
from pathlib import Path
from dmray.files import partial
with partial(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_killed_writers_left_is_removed_when_the_sweep_starts(tmp_path: Path) -> None:
    plan, folder = tiny_plan(tmp_path, training={"steps": 10, "batch_size": 4}), SweepFolder(tmp_path, "tiny")
    trial = folder.trial(plan.trial_ids[0])
    for place in (folder.manifest, folder.datasets / "data.hdf5", trial.last_checkpoint, trial.episode_table(5)):
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-c", KILLED, str(place)], check=False)
    assert len(list(tmp_path.rglob("*.part"))) == 4
    states = run_sweep(plan, folder, LocalRunner(), lambda sweep: sweep.report, resume=True)
    assert set(states.values()) == {TrialStatus.FINISHED}
    assert list(tmp_path.rglob("*.part")) == []
