"""Evaluation actors come and go; what they answer stays."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dmray.errors import CheckpointError
from dmray.on_ray.evaluation_pool import EvaluationPool, RemoteEvaluation
from dmray.specs import ResourcesSpec
from dmray.trial.evaluation import InlineEvaluation
from tests.on_ray.evaluations import policy_and_request
from tests.waiting import wait_until

pytestmark = pytest.mark.ray
TWO = ResourcesSpec(evaluation_actors=2, cpus_per_evaluation_actor=0.5)


@pytest.mark.chaos
def test_idle_actors_are_let_go_and_come_back_for_work(ray_session: None, tmp_path: Path) -> None:
    weights, request = policy_and_request(tmp_path, episodes=30)
    pool = EvaluationPool.start(TWO, "idle", idle_s=0.3)
    wait_until(lambda: len(pool.process_ids()) == 1)  # where starting takes long, one may be gone before two were seen
    stays = pool.process_ids()
    time.sleep(1.0)
    assert pool.process_ids() == stays, "the one that stays is not replaced"
    future = RemoteEvaluation(pool.dispatcher_name).submit(weights, request)
    assert future.result(timeout=120) == InlineEvaluation().submit(weights, request).result()


@pytest.mark.chaos
def test_an_error_in_a_rollout_reaches_the_trial_that_asked_and_the_actor_goes_on(
    ray_session: None, tmp_path: Path
) -> None:
    weights, request = policy_and_request(tmp_path)
    broken = {name: value[:0] for name, value in weights.weights.items()}
    pool = EvaluationPool.start(ResourcesSpec(cpus_per_evaluation_actor=0.5), "broken")
    service = RemoteEvaluation(pool.dispatcher_name)
    future = service.submit(type(weights)(weights.recipe, broken), request)
    with pytest.raises(CheckpointError, match="there are weights for 0 parameters"):
        future.result(timeout=60)
    assert service.submit(weights, request).result(timeout=60) == InlineEvaluation().submit(weights, request).result()
