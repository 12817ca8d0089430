"""Executor "train" on Ray: trials that share one worker, which is killed in the middle of the first."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import ray

from dmray.driver.local_runner import LocalRunner
from dmray.on_ray import RayRunner
from dmray.progress.trial_status import TrialStatus, trial_statuses
from dmray.records import AttemptStarted, SweepFolder, read_ledger
from tests.sweeps import science_of, tiny_plan
from tests.waiting import wait_until

CHANGES = {
    "grid": [{"methods": ["bc"], "models": [{"d_model": 16, "n_layer": 1, "context_length": 4}]}],
    "seeds": [0, 1],
    "training": {"steps": 600, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
    "evaluation": {"episodes": 2, "every_steps": 600, "cohort_size": 2, "target_returns": [50.0]},
    "resources": {"cpus_per_trial": 0.5, "cpus_per_evaluation_actor": 0.5, "max_concurrent_trials": 1},
    "faults": {"checkpoint_every_steps": 20},
}


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_trials_share_a_worker_and_the_one_that_dies_with_it_continues_in_the_next(
    ray_session: None, tmp_path: Path
) -> None:
    here, there = (tiny_plan(tmp_path / name, **CHANGES) for name in ("local", "ray"))
    local, remote = (SweepFolder(tmp_path / name, "tiny") for name in ("local", "ray"))
    LocalRunner().run(here, here.trials, local)
    first, second = (remote.trial(trial_id) for trial_id in there.trial_ids)

    def workers(trial: Path) -> list[int]:
        attempts = [record for record in read_ledger(trial) if isinstance(record, AttemptStarted)]
        return [attempt.provenance["pid"] for attempt in attempts]

    def kill() -> None:
        wait_until(first.last_checkpoint.exists, 250.0)
        os.kill(workers(first.ledger)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert RayRunner().run(there, there.trials, remote) == []
    killer.join(60.0)
    assert set(trial_statuses(there, remote).values()) == {TrialStatus.FINISHED}
    killed, other = workers(first.ledger)
    assert killed != other
    assert workers(second.ledger) == [other], "it took no new worker"
    assert "its worker ended: " in first.log.read_text()
    assert science_of(remote, there.trial_ids) == science_of(local, here.trial_ids)
    groups = ray.util.placement_group_table().values()
    assert {group["state"] for group in groups} == {"REMOVED"}, "no slot keeps its CPUs"
