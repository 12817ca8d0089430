"""Evaluation actors come and go; what they answer stays."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError

from dmray.driver.local_runner import LocalRunner
from dmray.on_ray import RayRunner
from dmray.on_ray.evaluation_pool import EvaluationPool, RemoteEvaluation
from dmray.records import SweepFolder, read_episode_table
from dmray.specs import ResourcesSpec
from dmray.trial.evaluation import InlineEvaluation
from tests.on_ray.evaluations import policy_and_request
from tests.sweeps import science_of, tiny_plan
from tests.waiting import wait_until

pytestmark = pytest.mark.ray
TWO = ResourcesSpec(evaluation_actors=2, cpus_per_evaluation_actor=0.5)
VICTIMS = ["actor", "dispatcher", "actor"]


def test_idle_actors_are_let_go_and_come_back_for_work(ray_session: None, tmp_path: Path) -> None:
    weights, request = policy_and_request(tmp_path, episodes=30)
    pool = EvaluationPool.start(TWO, "idle", idle_s=0.3)
    wait_until(lambda: len(pool.process_ids()) == 1)  # where starting takes long, one may be gone before two were seen
    stays = pool.process_ids()
    time.sleep(1.0)
    assert pool.process_ids() == stays, "the one that stays is not replaced"
    future = RemoteEvaluation(pool.dispatcher_name).submit(weights, request)
    assert future.result(timeout=120) == InlineEvaluation().submit(weights, request).result()


@pytest.mark.slow
def test_killing_actors_and_the_dispatcher_changes_no_score(ray_session: None, tmp_path: Path) -> None:
    """A sweep of two trials at once; something of the pool is killed whenever two more evaluations are done."""
    changes = {
        "training": {"steps": 60, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 5},
        "evaluation": {"episodes": 12, "every_steps": 20, "cohort_size": 2, "target_returns": [50.0]},
        "resources": {**TWO.model_dump(), "executor": "tune", "cpus_per_trial": 0.5},
    }
    here, there = (tiny_plan(tmp_path / name, **changes) for name in ("local", "ray"))
    local, remote = (SweepFolder(tmp_path / name, "tiny") for name in ("local", "ray"))
    LocalRunner().run(here, here.trials, local)
    others = set(ray.util.list_named_actors())
    sweep = threading.Thread(target=RayRunner().run, args=(there, there.trials, remote))
    sweep.start()
    killed = kill_as_it_goes_on(others, sweep.is_alive, lambda: evaluations_of(remote), random.Random(0))
    sweep.join()
    assert len(killed) >= 2, "the sweep was over too soon"
    assert science_of(remote, there.trial_ids) == science_of(local, here.trial_ids)
    for name in here.trial_ids:
        tables = sorted(local.trial(name).evaluations.glob("*.parquet"))
        assert len(tables) == 3
        for table in tables:
            assert read_episode_table(remote.trial(name).evaluations / table.name) == read_episode_table(table)


def evaluations_of(folder: SweepFolder) -> int:
    return len(list(folder.path.glob("trials/*/evaluations/*.parquet")))


def kill_as_it_goes_on(
    others: set[str], running: Callable[[], bool], evaluations: Callable[[], int], rng: random.Random
) -> list[str]:
    """Kill -9 what `VICTIMS` names, one after every second evaluation, while the sweep is `running`; what was killed.

    By what the sweep has done, not by the clock: the sweep of a fast machine is not over before the last kill.
    """
    killed: list[str] = []
    while running() and len(killed) < len(VICTIMS):
        time.sleep(0.02)
        if evaluations() < 2 * len(killed):
            continue
        for name in set(ray.util.list_named_actors()) - others:
            with contextlib.suppress(RayActorError, ProcessLookupError, ValueError):  # the sweep has just ended
                dispatcher, victim = ray.get_actor(name), VICTIMS[len(killed)]
                actors, itself = ray.get([dispatcher.process_ids.remote(), dispatcher.process_id.remote()])
                os.kill(itself if victim == "dispatcher" else rng.choice(actors), signal.SIGKILL)
                killed.append(victim)
    return killed
