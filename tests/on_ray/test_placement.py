from __future__ import annotations

import re

import pytest

from dmray.errors import ClusterError
from dmray.on_ray.placement import place_trials
from dmray.on_ray.resources import Machines
from dmray.specs import ResourcesSpec


@pytest.mark.parametrize(
    ("resources", "machines", "cure"),
    [
        ({"evaluation_actors": 4}, (4, 0), "-o resources.evaluation_actors=3"),
        ({"gpus_per_trial": 1}, (8, 0), "-o resources.gpus_per_trial=0"),
        ({"gpus_per_trial": 4}, (8, 2), "-o resources.gpus_per_trial=2"),
        ({"cpus_per_trial": 8}, (8, 0), "-o resources.cpus_per_trial=4"),
        (
            {"evaluation_actors": 32, "gpus_per_trial": 0.25},
            (4, 0),
            "-o resources.evaluation_actors=3 -o resources.gpus_per_trial=0",
        ),
        ({"cpus_per_evaluation_actor": 4}, (4, 0), "Nothing smaller fits: add machines"),
    ],
)
def test_a_sweep_that_does_not_fit_is_told_the_nearest_values_that_do(
    resources: dict[str, float], machines: tuple[float, float], cure: str
) -> None:
    with pytest.raises(ClusterError) as refused:
        place_trials(ResourcesSpec.model_validate(resources), Machines(*machines, drivers=9), 5)
    assert str(refused.value).endswith(cure)


@pytest.mark.parametrize(
    ("resources", "machines"),
    [
        ({"evaluation_actors": 4}, Machines(4, 0, 9)),
        ({"gpus_per_trial": 4}, Machines(8, 2, 9)),
        ({"cpus_per_trial": 8}, Machines(8, 0, 9)),
        ({"evaluation_actors": 32, "gpus_per_trial": 0.25}, Machines(4, 0, 9)),
        ({"gpus_per_trial": 2}, Machines(16, 4, 9, nodes=((4, 1),) * 4)),
        ({"cpus_per_trial": 8, "evaluation_actors": 20}, Machines(16, 4, 9, nodes=((4, 1),) * 4)),
    ],
)
def test_a_sweep_fits_with_the_options_that_its_refusal_names(resources: dict[str, float], machines: Machines) -> None:
    spec = ResourcesSpec.model_validate(resources)
    with pytest.raises(ClusterError) as refused:
        place_trials(spec, machines, 5)
    named = dict(re.findall(r"-o resources\.(\w+)=(\S+)", str(refused.value)))
    assert named, refused.value
    changed = ResourcesSpec.model_validate({**resources, **named})
    assert place_trials(changed, machines, 5).concurrent_trials >= 1


def test_a_trial_is_never_spread_over_two_machines() -> None:
    small_ones = Machines(16, 4, 9, nodes=((4, 1),) * 4)
    with pytest.raises(ClusterError, match=r"no single machine has 8 CPUs .* the largest has 4 CPUs and 1 GPUs"):
        place_trials(ResourcesSpec(cpus_per_trial=8), small_ones, 5)
    with pytest.raises(ClusterError, match=r"-o resources.gpus_per_trial=1$"):
        place_trials(ResourcesSpec(gpus_per_trial=2), small_ones, 5)
    assert place_trials(ResourcesSpec(cpus_per_trial=3), small_ones, 9).concurrent_trials == 4
    assert place_trials(ResourcesSpec(gpus_per_trial=0.5), small_ones, 99).concurrent_trials == 8
