from __future__ import annotations

import pytest

from dmray.errors import ClusterError
from dmray.on_ray.resources import Machines, fit, machines_for_one_node
from dmray.specs import ResourcesSpec


@pytest.mark.parametrize(
    ("resources", "machines", "trials", "concurrent"),
    [
        ({}, (4, 0, 9), 9, 3),  # one CPU is the evaluation actor's
        ({"cpus_per_trial": 0.5}, (2, 0, 9), 9, 2),
        ({"cpus_per_trial": 0.5}, (2, 0, 9), 1, 1),  # no more than there are
        ({"max_concurrent_trials": 2}, (8, 0, 9), 9, 2),
        ({"gpus_per_trial": 0.25}, (64, 2, 99), 99, 8),
        ({"gpus_per_trial": 0.3}, (64, 2, 99), 99, 6),  # a fraction never spans two GPUs
        ({"gpus_per_trial": 2}, (64, 5, 99), 99, 2),
        ({"evaluation_actors": 60}, (64, 0, 99), 99, 4),
        ({}, (64, 0, 3), 99, 3),  # the head's driver slots
        ({"gpus_per_trial": 0.5, "gpus_per_evaluation_actor": 0.25}, (64, 2, 99), 99, 3),
        ({"gpus_per_trial": 0.5, "gpus_per_evaluation_actor": 0.25, "evaluation_actors": 2}, (64, 2, 99), 99, 2),
        ({"gpus_per_trial": 1, "gpus_per_evaluation_actor": 0.1}, (64, 2, 99), 99, 1),
        ({"gpus_per_evaluation_actor": 1}, (4, 1, 99), 99, 3),  # trials on CPUs
    ],
)
def test_trials_at_once(
    resources: dict[str, float], machines: tuple[float, float, float], trials: int, concurrent: int
) -> None:
    assert fit(ResourcesSpec.model_validate(resources), Machines(*machines), trials).concurrent_trials == concurrent


@pytest.mark.parametrize(
    ("resources", "machines"),
    [
        ({"evaluation_actors": 4}, (4, 0, 9)),
        ({"gpus_per_trial": 1}, (8, 0, 9)),
        ({"gpus_per_trial": 0.5}, (8, 0.4, 9)),
        ({"cpus_per_trial": 8}, (8, 0, 9)),
        ({"gpus_per_evaluation_actor": 0.5}, (8, 0, 9)),
        ({"gpus_per_evaluation_actor": 0.5, "evaluation_actors": 3}, (8, 1, 9)),
        ({"gpus_per_evaluation_actor": 0.5, "gpus_per_trial": 1}, (8, 1, 9)),
    ],
)
def test_a_sweep_that_does_not_fit_is_refused_with_the_sum(
    resources: dict[str, float], machines: tuple[float, float, float]
) -> None:
    with pytest.raises(ClusterError, match=r"evaluation actors take .* of \d+ CPUs"):
        fit(ResourcesSpec.model_validate(resources), Machines(*machines), 5)


def test_a_driver_takes_the_heads_resource_or_almost_nothing() -> None:
    assert fit(ResourcesSpec(), Machines(4, 0, 9), 9).tune_trial == {"dmray_driver": 1.0}
    assert fit(ResourcesSpec(), Machines(4, 0, 0), 9).tune_trial == {"cpu": 0.01}


def test_a_trial_that_runs_in_tunes_own_actor_takes_the_trials_share_there() -> None:
    resources = ResourcesSpec(executor="tune", cpus_per_trial=2, gpus_per_trial=0.5)
    assert fit(resources, Machines(8, 2, 0), 9).tune_trial == {"cpu": 2, "gpu": 0.5}


def test_a_small_laptop_is_oversubscribed_rather_than_refused() -> None:
    resources = ResourcesSpec(evaluation_actors=2, cpus_per_trial=0.5)
    machines = machines_for_one_node(resources, cpu_count=1, gpu_count=0)
    assert machines.cpus == 3
    assert fit(resources, machines, 4).concurrent_trials == 2


def test_a_rehearsal_needs_no_gpu() -> None:
    resources = ResourcesSpec(gpus_per_trial=0.25, device="cpu")
    assert resources.trial_device == "cpu"
    assert fit(resources, machines_for_one_node(resources, 4, gpu_count=0), 9).concurrent_trials == 3
    real = ResourcesSpec(gpus_per_trial=0.25)
    with pytest.raises(ClusterError):
        fit(real, machines_for_one_node(real, 4, gpu_count=0), 9)


def test_only_what_came_from_outside_is_tried_again() -> None:
    from ray.exceptions import ActorDiedError, RayTaskError

    from dmray.errors import DatasetError
    from dmray.on_ray.trainable import is_transient

    assert is_transient(ActorDiedError())
    assert is_transient(OSError("No space left on device"))
    assert not is_transient(DatasetError("a broken file"))
    assert not is_transient(ValueError("a bug"))
    in_an_actor = RayTaskError("rollout", "a traceback", ValueError("a bug in an actor"))
    assert not is_transient(in_an_actor)
    assert not is_transient(RayTaskError("evaluate", "a traceback", in_an_actor))
    assert is_transient(RayTaskError("evaluate", "a traceback", ActorDiedError()))
