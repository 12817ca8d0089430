"""Does the sweep fit the machines, and how many trials run at once: decided before anything is started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

from dmray.errors import ClusterError
from dmray.specs import ResourcesSpec

DRIVER_RESOURCE = "dmray_driver"  # a custom resource of the head node, so that trial drivers never take a worker's CPU
_DRIVER_CPU = 0.01  # where the cluster has no such resource; Ray refuses a bundle of zero


@dataclass(frozen=True)
class Machines:
    """What a Ray cluster has in all, and (CPUs, GPUs) of each of its nodes; a machine of one's own names none."""

    cpus: float
    gpus: float
    drivers: float
    nodes: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Placement:
    """How a sweep is laid out: trials at once, and what each Tune trial takes.

    That is a driver without work of its own, or the whole trial if the executor is "tune".
    """

    concurrent_trials: int
    tune_trial: dict[str, float]


def machines_for_one_node(resources: ResourcesSpec, cpu_count: int, gpu_count: int) -> Machines:
    """What to tell Ray that this machine has: its CPUs, or as many as one trial beside the actors needs.

    A laptop with fewer cores than the sweep file asks for is oversubscribed rather than refused: slower, same results.
    So it is with GPUs when they are only rehearsed.
    """
    if resources.device == "cpu":
        gpu_count = max(gpu_count, ceil(resources.gpus_per_trial + _gpus_of_actors(resources)))
    least = resources.cpus_per_trial + resources.evaluation_actors * resources.cpus_per_evaluation_actor
    return Machines(max(float(cpu_count), float(-floor(-least))), float(gpu_count), drivers=1000.0)


def machine_here(resources: ResourcesSpec) -> Machines:
    """What a sweep without a cluster finds on this machine; loads neither Ray nor torch."""
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return machines_for_one_node(resources, os.cpu_count() or 1, gpus)


def fit(resources: ResourcesSpec, machines: Machines, num_trials: int) -> Placement:
    """Lay `num_trials` out on `machines`, evaluation actors first, so that trials and actors cannot starve each other.

    Raises:
        ClusterError: not even one trial fits beside the evaluation actors; the message does the sum.
    """
    actors, gpus_of_actors = (
        resources.evaluation_actors * resources.cpus_per_evaluation_actor,
        _gpus_of_actors(resources),
    )
    left = machines.cpus - actors
    slots = [floor(left / resources.cpus_per_trial + 1e-9)]
    rooms = _rooms_beside_actors(machines.gpus, resources)
    if resources.gpus_per_trial > 0:
        slots.append(_gpu_slots(rooms, resources.gpus_per_trial))
    if min(slots) < 1 or rooms is None:
        raise ClusterError(
            f"resources: {resources.evaluation_actors} evaluation actors take {actors:g} of {machines.cpus:g} CPUs and "
            f"{gpus_of_actors:g} of {machines.gpus:g} GPUs; a trial needs {resources.cpus_per_trial:g} CPUs and "
            f"{resources.gpus_per_trial:g} GPUs, {max(left, 0):g} CPUs and "
            f"{max(machines.gpus - gpus_of_actors, 0):g} GPUs are left. Lower resources.evaluation_actors, "
            "resources.cpus_per_trial or resources.gpus_per_trial, or add machines"
        )
    wanted = [n for n in (resources.max_concurrent_trials, num_trials) if n is not None]
    concurrent = min(*slots, *wanted)
    if resources.executor == "tune":
        return Placement(concurrent, {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial})
    if machines.drivers >= 1:
        return Placement(min(concurrent, floor(machines.drivers)), {DRIVER_RESOURCE: 1.0})
    return Placement(concurrent, {"cpu": _DRIVER_CPU})


def _gpus_of_actors(resources: ResourcesSpec) -> float:
    return resources.evaluation_actors * resources.gpus_per_evaluation_actor


def _rooms_beside_actors(gpus: float, resources: ResourcesSpec) -> list[float] | None:
    """What is free of each GPU when the actors are spread over them; None: they do not fit."""
    rooms, share = [1.0] * floor(gpus), resources.gpus_per_evaluation_actor
    for _ in range(resources.evaluation_actors if share > 0 else 0):
        widest = max(range(len(rooms)), key=rooms.__getitem__, default=None)
        if widest is None or rooms[widest] < share - 1e-9:
            return None
        rooms[widest] -= share
    return rooms


def _gpu_slots(rooms: list[float] | None, gpus_per_trial: float) -> int:
    """Trials at once: a fraction never spans two GPUs, more than one are whole GPUs."""
    if rooms is None:
        return 0
    if gpus_per_trial >= 1:
        return floor(sum(room == 1.0 for room in rooms) / gpus_per_trial)
    return sum(floor(room / gpus_per_trial + 1e-9) for room in rooms)
