"""Every bundle of a sweep on the machines that there are, or the nearest values that fit: told before the start."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import floor

from dmray.errors import ClusterError
from dmray.on_ray.resources import Machines, Placement, fit
from dmray.specs import ResourcesSpec

_SHARES = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.2, 0.1, 0.0)


def place_trials(resources: ResourcesSpec, machines: Machines, num_trials: int) -> Placement:
    """`fit`, held against each single machine too: a trial is never spread over two.

    Raises:
        ClusterError: something does not fit; the message does the sum and names the nearest values that do.
    """
    try:
        return _on_nodes(resources, machines, fit(resources, machines, num_trials))
    except ClusterError as problem:
        raise ClusterError(f"{problem}. {_cure(resources, machines)}") from None


def _on_nodes(resources: ResourcesSpec, machines: Machines, layout: Placement) -> Placement:
    if not machines.nodes:
        return layout
    slots = sum(_slots(resources, cpus, gpus) for cpus, gpus in machines.nodes)
    if slots < 1:
        largest = max(machines.nodes, key=lambda node: (node[1], node[0]))
        raise ClusterError(
            f"resources: no single machine has {resources.cpus_per_trial:g} CPUs and {resources.gpus_per_trial:g} GPUs "
            f"for a trial; the largest has {largest[0]:g} CPUs and {largest[1]:g} GPUs"
        )
    return replace(layout, concurrent_trials=min(layout.concurrent_trials, slots))


def _slots(resources: ResourcesSpec, cpus: float, gpus: float) -> int:
    by_cpus = floor(cpus / resources.cpus_per_trial + 1e-9)
    share = resources.gpus_per_trial
    if share == 0:
        return by_cpus
    return min(by_cpus, floor(gpus / share) if share >= 1 else floor(gpus) * floor(1 / share + 1e-9))


def _cure(resources: ResourcesSpec, machines: Machines) -> str:
    """The fewest fields lowered, each as little as will do."""
    options: dict[str, list[float]] = {
        "evaluation_actors": list(range(resources.evaluation_actors, 0, -1)),
        "gpus_per_trial": _lower(resources.gpus_per_trial),
        "cpus_per_trial": [value for value in _lower(resources.cpus_per_trial) if value > 0],
    }
    tries = []
    for values in product(*(enumerate(option) for option in options.values())):
        places = [place for place, _ in values]
        changed = {name: value for name, (place, value) in zip(options, values, strict=True) if place}
        tries.append((len(changed), sum(places), changed))
    for _, _, changed in sorted(tries, key=lambda one: one[:2]):
        try:
            candidate = resources.model_copy(update=changed)
            _on_nodes(candidate, machines, fit(candidate, machines, 1))
        except ClusterError:
            continue
        return "Nearest that fits: " + " ".join(f"-o resources.{name}={value:g}" for name, value in changed.items())
    return "Nothing smaller fits: add machines"


def _lower(value: float) -> list[float]:
    return [value, *(share for share in _SHARES if share < value)]
