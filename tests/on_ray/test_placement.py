from __future__ import annotations

import re

import pytest

from dmray.errors import ClusterError
from dmray.on_ray.placement import Machines, machines_for_one_node, machines_like, overload, place_trials
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
    placement = place_trials(ResourcesSpec.model_validate(resources), Machines(*machines), trials)
    assert placement.concurrent_trials == concurrent


@pytest.mark.parametrize(
    ("resources", "machines", "values"),
    [
        ({"evaluation_actors": 4}, Machines(4, 0, 9), {"evaluation_actors": 3}),
        ({"cpus_per_trial": 8}, Machines(8, 0, 9), {"cpus_per_trial": 7}),
        (
            {"cpus_per_trial": 8, "evaluation_actors": 12},
            Machines(8, 0, 9),
            {"evaluation_actors": 1, "cpus_per_trial": 7},
        ),
        ({"cpus_per_trial": 0.5}, Machines(1.25, 0, 9), {"cpus_per_trial": 0.25}),
        ({"cpus_per_evaluation_actor": 4}, Machines(4, 0, 9), {"cpus_per_evaluation_actor": 3}),
        ({"gpus_per_trial": 1}, Machines(8, 0, 9), {"gpus_per_trial": 0}),
        ({"gpus_per_trial": 4}, Machines(8, 2, 9), {"gpus_per_trial": 2}),
        ({"gpus_per_trial": 0.5}, Machines(8, 0.4, 9), {"gpus_per_trial": 0}),
        ({"gpus_per_trial": 1, "gpus_per_evaluation_actor": 0.3}, Machines(8, 1, 9), {"gpus_per_trial": 0.7}),
        ({"gpus_per_evaluation_actor": 0.5}, Machines(8, 0, 9), {"gpus_per_evaluation_actor": 0}),
        ({"gpus_per_evaluation_actor": 0.5, "evaluation_actors": 3}, Machines(8, 1, 9), {"evaluation_actors": 2}),
        (
            {"evaluation_actors": 32, "gpus_per_trial": 0.25},
            Machines(4, 0, 9),
            {"evaluation_actors": 3, "gpus_per_trial": 0},
        ),
        ({"cpus_per_trial": 8}, Machines(16, 4, 9, nodes=((4, 1),) * 4), {"cpus_per_trial": 4}),
        ({"gpus_per_trial": 2}, Machines(16, 4, 9, nodes=((4, 1),) * 4), {"gpus_per_trial": 1}),
        (
            {"gpus_per_trial": 1, "cpus_per_trial": 4},
            Machines(10, 1, 9, nodes=((8, 0), (2, 1))),
            {"cpus_per_trial": 2},
        ),
    ],
)
def test_a_sweep_that_does_not_fit_is_refused_with_values_that_do(
    resources: dict[str, float], machines: Machines, values: dict[str, float]
) -> None:
    with pytest.raises(ClusterError) as refused:
        place_trials(ResourcesSpec.model_validate(resources), machines, 5)
    found = re.findall(r"-o resources\.(\w+)=(\S+)", str(refused.value))
    named = {name: float(value) for name, value in found}
    assert named == values
    assert place_trials(ResourcesSpec.model_validate(resources | named), machines, 5).concurrent_trials >= 1


def test_a_refusal_says_how_much_there_is() -> None:
    with pytest.raises(ClusterError, match=r"4 evaluation actors take 4 of 4 CPUs, which leaves 0 for .* 1\."):
        place_trials(ResourcesSpec(evaluation_actors=4), Machines(4, 0, 9), 5)
    with pytest.raises(ClusterError, match=r"a trial needs 8 CPUs of one machine, the largest machine has 4\."):
        place_trials(ResourcesSpec(cpus_per_trial=8), Machines(16, 0, 9, nodes=((4, 0),) * 4), 5)


def test_where_no_value_fits_machines_are_missing() -> None:
    with pytest.raises(ClusterError, match=r"Add machines$"):
        place_trials(ResourcesSpec(), Machines(1, 0, 9), 5)


def test_a_trial_is_never_spread_over_two_machines() -> None:
    machines = Machines(16, 4, 9, nodes=((4, 1),) * 4)
    assert place_trials(ResourcesSpec(cpus_per_trial=3), machines, 9).concurrent_trials == 4
    assert place_trials(ResourcesSpec(gpus_per_trial=0.5), machines, 99).concurrent_trials == 8


def test_a_driver_takes_the_heads_resource_or_almost_nothing() -> None:
    assert place_trials(ResourcesSpec(), Machines(4, 0, 9), 9).bundles == ({"dmray_driver": 1.0}, {"CPU": 1.0})
    assert place_trials(ResourcesSpec(), Machines(4, 0, 0), 9).bundles == ({"CPU": 0.01}, {"CPU": 1.0})


def test_a_trial_that_runs_in_tunes_own_actor_takes_the_trials_share_there() -> None:
    resources = ResourcesSpec(executor="tune", cpus_per_trial=2, gpus_per_trial=0.5)
    assert place_trials(resources, Machines(8, 2, 0), 9).bundles == ({"CPU": 2, "GPU": 0.5},)


def test_a_small_laptop_is_oversubscribed_rather_than_refused() -> None:
    resources = ResourcesSpec(evaluation_actors=2, cpus_per_trial=0.5)
    machines = machines_for_one_node(resources, cpu_count=1, gpu_count=0)
    assert machines.cpus == 3
    assert place_trials(resources, machines, 4).concurrent_trials == 2


@pytest.mark.parametrize(
    ("resources", "trials", "cpus", "said"),
    [
        ({"evaluation_actors": 4}, 16, 20, None),
        ({"evaluation_actors": 4}, 16, 2, "16 trials of 1 CPU and 4 evaluation actors of .* share 2 CPUs.* 10 times"),
        ({"evaluation_actors": 1, "cpus_per_trial": 0.5}, 2, 2, None),
        ({"evaluation_actors": 1, "cpus_per_trial": 2}, 1, 2, "1 trial of 2 CPUs and 1 evaluation actor .* 1.5 times"),
    ],
)
def test_more_processes_than_real_cpus_are_said(
    resources: dict[str, float], trials: int, cpus: int, said: str | None
) -> None:
    spec = ResourcesSpec.model_validate(resources)
    machines = Machines(max(cpus, 20), 0, 1000, real_cpus=cpus)
    found = overload(spec, trials, machines)
    assert found is None if said is None else re.search(said, found or "")


def test_other_machines_are_planned_as_if_they_were_there() -> None:
    resources = ResourcesSpec(evaluation_actors=32, cpus_per_trial=2, gpus_per_trial=0.25)
    with pytest.raises(ClusterError):
        place_trials(resources, machines_like(resources, 1, cpus=8, gpus=0), 540)
    eight = machines_like(resources, 16, cpus=8, gpus=1)
    assert (eight.usable_cpus, eight.gpus, len(eight.each)) == (128, 16, 16)
    assert place_trials(resources, eight, 540).concurrent_trials == 48
    assert machines_like(ResourcesSpec(evaluation_actors=4), 1, cpus=2, gpus=0).usable_cpus == 2


@pytest.mark.parametrize(
    ("share", "actors_share", "machines", "trials", "sharing"),
    [
        (0.25, 0.0, (1, 1), 99, (4, 1)),
        (0.25, 0.0, (1, 8), 99, (4, 8)),
        (0.25, 0.0, (1, 8), 8, (4, 8)),  # Ray fills one GPU of a machine before the next
        (0.25, 0.0, (8, 1), 8, (1, 8)),  # and spreads trials over machines
        (0.25, 1.0, (1, 8), 99, (4, 4)),  # four GPUs are the actors'
        (0.5, 0.25, (1, 4), 99, (1, 4)),  # an actor on each GPU leaves room for one trial
        (1.0, 0.0, (1, 8), 99, (1, 0)),
        (2.0, 0.0, (1, 8), 99, (1, 0)),
        (0.0, 0.0, (1, 8), 99, (1, 0)),
    ],
)
def test_how_many_trials_share_a_gpu_and_how_many_gpus_have_room(
    share: float, actors_share: float, machines: tuple[int, int], trials: int, sharing: tuple[int, int]
) -> None:
    resources = ResourcesSpec(gpus_per_trial=share, evaluation_actors=4, gpus_per_evaluation_actor=actors_share)
    placed = place_trials(resources, machines_like(resources, machines[0], 128, machines[1]), trials)
    assert (placed.trials_on_a_gpu, placed.gpus) == sharing


def test_a_rehearsal_needs_no_gpu() -> None:
    resources = ResourcesSpec(gpus_per_trial=0.25, device="cpu")
    assert resources.trial_device == "cpu"
    assert place_trials(resources, machines_for_one_node(resources, 4, gpu_count=0), 9).concurrent_trials == 3
    real = ResourcesSpec(gpus_per_trial=0.25)
    with pytest.raises(ClusterError):
        place_trials(real, machines_for_one_node(real, 4, gpu_count=0), 9)
