"""A sweep on a cluster of several nodes that loses one in the middle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmray.driver.local_runner import LocalRunner
from dmray.progress.trial_status import TrialStatus, trial_statuses
from dmray.records import AttemptStarted, SweepFolder, read_ledger
from tests.sweeps import science_of, sweep_file, tiny_plan
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(600)]

CHANGES = {
    "training": {"steps": 1000, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
    "evaluation": {"episodes": 4, "every_steps": 500, "cohort_size": 2, "target_returns": [50.0]},
    "resources": {"gpus_per_trial": 1, "device": "cpu", "cpus_per_trial": 0.5, "cpus_per_evaluation_actor": 0.5},
    "faults": {"checkpoint_every_steps": 100},
}


@pytest.fixture
def cluster() -> Iterator[subprocess.Popen[str]]:
    nodes = subprocess.Popen(
        [sys.executable, "-m", "tests.on_ray.nodes"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield nodes
    nodes.communicate(timeout=60)


def test_a_node_that_is_lost_costs_no_more_than_the_work_since_the_last_checkpoint(
    cluster: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    here, there = (tiny_plan(tmp_path / name, **CHANGES) for name in ("local", "cluster"))
    local, remote = (SweepFolder(tmp_path / name, "tiny") for name in ("local", "cluster"))
    file = sweep_file(tmp_path / "cluster", **CHANGES)
    address = cluster.stdout.readline().strip()
    command = [sys.executable, "-m", "dmray.sweep", str(file), "--address", address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as sweep:

        def both_have_saved() -> bool:
            assert sweep.poll() is None, sweep.communicate()[1]
            return all(remote.trial(trial).last_checkpoint.exists() for trial in there.trial_ids)

        wait_until(both_have_saved, timeout_s=300.0)
        cluster.stdin.write("one\n")
        cluster.stdin.flush()
        assert cluster.stdout.readline() == "gone\n"
        _, said = sweep.communicate(timeout=600)
    assert sweep.returncode == 0, said

    assert set(trial_statuses(there, remote).values()) == {TrialStatus.FINISHED}
    ledgers = [read_ledger(remote.trial(trial).ledger) for trial in there.trial_ids]
    attempts = [[r.from_step for r in ledger if isinstance(r, AttemptStarted)] for ledger in ledgers]
    assert sorted(map(len, attempts)) == [1, 2], "one of the two trials lost its node"
    assert max(attempts, key=len)[1] > 0, "it continued from its checkpoint"
    LocalRunner().run(here, here.trials, local)
    assert science_of(remote, there.trial_ids) == science_of(local, here.trial_ids)
