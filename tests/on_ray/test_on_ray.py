"""The real path: Ray Tune, a Ray Train worker a trial, rollout actors. Ray starts once for the whole session."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from dmray.driver.local_runner import LocalRunner
from dmray.on_ray import RayRunner
from dmray.on_ray.evaluation_pool import EvaluationPool, RemoteEvaluation
from dmray.progress.trial_status import TrialStatus, failures, trial_statuses
from dmray.records import AttemptStarted, SweepFolder, read_ledger
from dmray.specs import ResourcesSpec
from dmray.trial.evaluation import InlineEvaluation
from tests.on_ray.evaluations import policy_and_request
from tests.sweeps import science_of, tiny_plan
from tests.waiting import wait_until

pytestmark = pytest.mark.ray


def test_a_killed_actor_is_replaced_and_its_episodes_run_again(ray_session: None, tmp_path: Path) -> None:
    weights, request = policy_and_request(tmp_path)
    pool = EvaluationPool.start(ResourcesSpec(evaluation_actors=2, cpus_per_evaluation_actor=0.5), "killed")
    pids = pool.process_ids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # both get a cohort and finish none, however fast the machine is
    try:
        future = RemoteEvaluation(pool.dispatcher_name).submit(weights, request)
        assert pool.process_ids() == pids  # the dispatcher answers this after it has handed out the cohorts
        os.kill(pids[0], signal.SIGKILL)
        assert not future.done()
    finally:
        os.kill(pids[1], signal.SIGCONT)
    assert future.result(timeout=120) == InlineEvaluation().submit(weights, request).result()
    wait_until(lambda: len(set(pool.process_ids()) - {pids[0]}) == 2)


def test_an_error_in_a_rollout_reaches_the_trial_that_asked_and_the_actor_goes_on(
    ray_session: None, tmp_path: Path
) -> None:
    weights, request = policy_and_request(tmp_path)
    broken = {name: value[:0] for name, value in weights.weights.items()}
    pool = EvaluationPool.start(ResourcesSpec(cpus_per_evaluation_actor=0.5), "broken")
    service = RemoteEvaluation(pool.dispatcher_name)
    future = service.submit(type(weights)(weights.recipe, broken), request)
    with pytest.raises(RuntimeError, match="size mismatch"):
        future.result(timeout=60)
    assert service.submit(weights, request).result(timeout=60) == InlineEvaluation().submit(weights, request).result()


def test_a_sweep_on_ray_has_the_results_of_a_local_one_and_survives_a_killed_worker(
    ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With executor "tune"; tests/on_ray/test_nodes.py takes a Ray Train worker away with its machine."""
    changes = {
        "grid": [{"methods": ["hdm"], "models": [{"d_model": 16, "n_layer": 1, "context_length": 4}]}],
        "training": {"steps": 1000, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
        "evaluation": {"episodes": 4, "every_steps": 250, "cohort_size": 2, "target_returns": [50.0]},
        "datasets": [
            {"name": "open-expert", "task": "maze2d-open", "generate": {"transitions": 1500}},
            "maze2d-umaze-v1",  # not there: its trials fail, the others go on
        ],
        "resources": {"executor": "tune", "cpus_per_trial": 0.5, "cpus_per_evaluation_actor": 0.5},
    }
    here, there = (tiny_plan(tmp_path / name, **changes) for name in ("local", "ray"))
    local, remote = (SweepFolder(tmp_path / name, "tiny") for name in ("local", "ray"))
    LocalRunner().run(here, here.trials, local)
    victim = remote.trial(there.trial_ids[0])
    killer = threading.Thread(target=_kill_the_worker, args=(victim.ledger,))
    killer.start()
    RayRunner().run(there, there.trials, remote)
    killer.join()

    states = list(trial_statuses(there, remote).values())
    assert states == [TrialStatus.FINISHED, TrialStatus.FAILED]
    assert all("maze2d-umaze-sparse-v1.hdf5" in error for error in failures(there, remote).values())
    attempts = [record for record in read_ledger(victim.ledger) if isinstance(record, AttemptStarted)]
    assert len(attempts) == 2, "the worker was killed once"
    assert "ended: " in (victim.path / "log.txt").read_text()
    [told] = [line for line in caplog.text.splitlines() if "attempt 2 of 4 follows" in line]
    assert f"{there.trial_ids[0]}: its process ended: The actor died" in told
    assert science_of(remote, there.trial_ids[:1]) == science_of(local, here.trial_ids[:1])


def _kill_the_worker(ledger: Path, timeout_s: float = 250.0) -> None:
    """Kill -9 the process that trains, as soon as it has saved its first checkpoint."""
    wait_until((ledger.parent / "checkpoints" / "last.pt").exists, timeout_s)
    started = next(record for record in read_ledger(ledger) if isinstance(record, AttemptStarted))
    os.kill(started.provenance["pid"], signal.SIGKILL)
