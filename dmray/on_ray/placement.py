"""Whether a sweep fits the machines, and how many of its trials run at once: computed before anything is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

from dmray.errors import ClusterError
from dmray.processes import usable_cpus
from dmray.specs import ResourcesSpec

DRIVER_RESOURCE = "dmray_driver"  # a custom resource of the head node, so that trial drivers never take a worker's CPU
_DRIVER_CPU = 0.01  # what a driver takes where the cluster has no such resource; Ray refuses zero
_ROUNDING = 1e-9
_ANY_DRIVERS = 1e6


@dataclass(frozen=True)
class Machines:
    """CPUs, GPUs and driver slots of a Ray cluster, and (CPUs, GPUs) of each of its nodes.

    `nodes` is empty for one machine that has all of it. `real_cpus`: the CPUs that it really has, if Ray is told more.
    """

    cpus: float
    gpus: float
    drivers: float
    nodes: tuple[tuple[float, float], ...] = ()
    real_cpus: float | None = None

    @property
    def each(self) -> tuple[tuple[float, float], ...]:
        """(CPUs, GPUs) of every machine."""
        return self.nodes or ((self.cpus, self.gpus),)

    @property
    def usable_cpus(self) -> float:
        """The CPUs that there really are."""
        return self.cpus if self.real_cpus is None else self.real_cpus


@dataclass(frozen=True)
class Placement:
    """How many trials run at once, and the bundles of resources that each Tune trial takes.

    A Tune trial is a driver without work of its own beside a worker, or the whole trial if the executor is "tune".
    `trials_on_a_gpu`: how many of them share a GPU; 1 without GPUs. `gpus`: those with room for a trial.
    """

    concurrent_trials: int
    bundles: tuple[dict[str, float], ...]
    trials_on_a_gpu: int = 1
    gpus: int = 0


def machine_here(resources: ResourcesSpec) -> Machines:
    """What a sweep without a cluster finds on this machine; loads neither Ray nor torch."""
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return machines_for_one_node(resources, usable_cpus(), gpus)


def machines_like(resources: ResourcesSpec, count: int, cpus: int, gpus: int) -> Machines:
    """What a sweep would find on `count` machines of this size, beside a head node that only has the drivers."""
    if count == 1:
        return machines_for_one_node(resources, cpus, gpus)
    return Machines(float(count * cpus), float(count * gpus), _ANY_DRIVERS, ((float(cpus), float(gpus)),) * count)


def machines_for_one_node(resources: ResourcesSpec, cpu_count: int, gpu_count: int) -> Machines:
    """What to start Ray with on this machine: its CPUs, or as many as one trial and the evaluation actors need.

    On a laptop with fewer cores than that, processes share cores: the sweep is slower, its results are the same. With
    `device` "cpu" the GPUs are only counted, so there are as many as the sweep needs.
    """
    if resources.device == "cpu":
        of_actors = resources.evaluation_actors * resources.gpus_per_evaluation_actor
        gpu_count = max(gpu_count, ceil(resources.gpus_per_trial + of_actors))
    needed = ceil(resources.cpus_per_trial + _cpus_of_actors(resources))
    return Machines(float(max(cpu_count, needed)), float(gpu_count), drivers=1000.0, real_cpus=float(cpu_count))


def overload(resources: ResourcesSpec, concurrent_trials: int, machines: Machines) -> str | None:
    """A sentence if the trials and actors that run at once take more CPUs than there really are; else None."""
    wanted = concurrent_trials * resources.cpus_per_trial + _cpus_of_actors(resources)
    if wanted <= machines.usable_cpus + _ROUNDING:
        return None
    trials, actors = _counted(concurrent_trials, "trial"), _counted(resources.evaluation_actors, "evaluation actor")
    return (
        f"{trials} of {_counted(resources.cpus_per_trial, 'CPU')} and {actors} of "
        f"{_counted(resources.cpus_per_evaluation_actor, 'CPU')} share {_counted(machines.usable_cpus, 'CPU')}: while "
        f"all of them work, everything takes about {wanted / machines.usable_cpus:.2g} times as long"
    )


def _counted(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def place_trials(resources: ResourcesSpec, machines: Machines, num_trials: int) -> Placement:
    """Place the evaluation actors and then as many of `num_trials` as fit beside them, each trial on one machine.

    Raises:
        ClusterError: not one trial fits; the message names the resource that is short and a value that fits.
    """
    slots = _trial_slots(resources, machines)
    if slots < 1:
        raise ClusterError(_refusal(resources, machines))
    limits = [limit for limit in (resources.max_concurrent_trials, num_trials) if limit is not None]
    concurrent, bundles = min(slots, *limits), [trial_bundle(resources)]
    if resources.executor == "train":
        if machines.drivers >= 1:
            concurrent = min(concurrent, floor(machines.drivers))
        bundles.insert(0, {DRIVER_RESOURCE: 1.0} if machines.drivers >= 1 else {"CPU": _DRIVER_CPU})
    return Placement(concurrent, tuple(bundles), *_sharing(resources, machines, concurrent))


def _sharing(resources: ResourcesSpec, machines: Machines, concurrent: int) -> tuple[int, int]:
    """How many of the trials share a GPU, and how many GPUs have room for one.

    Ray spreads trials over machines, and on a machine fills one GPU before the next.
    """
    share = resources.gpus_per_trial
    if resources.trial_device == "cpu" or not 0.0 < share < 1.0:
        return 1, 0
    slots = [floor(free / share + _ROUNDING) for free in _free_gpu_shares(resources, machines.gpus) or ()]
    with_gpus = sum(gpus >= 1 for _, gpus in machines.each)
    return min(max(slots), ceil(concurrent / with_gpus)), sum(slot > 0 for slot in slots)


def trial_bundle(resources: ResourcesSpec) -> dict[str, float]:
    """What the process that trains takes, by Ray's names."""
    gpus = {"GPU": resources.gpus_per_trial} if resources.gpus_per_trial else {}
    return {"CPU": resources.cpus_per_trial} | gpus


def _trial_slots(resources: ResourcesSpec, machines: Machines) -> int:
    """How many trials fit beside the evaluation actors; 0 if the actors do not fit."""
    free = _free_gpu_shares(resources, machines.gpus)
    if free is None:
        return 0
    left = machines.cpus - _cpus_of_actors(resources)
    slots = [floor(left / resources.cpus_per_trial + _ROUNDING), _slots_of_machines(resources, machines)]
    if resources.gpus_per_trial > 0:
        slots.append(_gpu_slots(free, resources.gpus_per_trial))
    return max(0, min(slots))


def _slots_of_machines(resources: ResourcesSpec, machines: Machines) -> int:
    """How many trials fit on machines without evaluation actors, none of them spread over two machines."""
    slots = 0
    for cpus, gpus in machines.each:
        by_cpus = floor(cpus / resources.cpus_per_trial + _ROUNDING)
        by_gpus = _gpu_slots([1.0] * floor(gpus), resources.gpus_per_trial) if resources.gpus_per_trial else by_cpus
        slots += min(by_cpus, by_gpus)
    return slots


def _cpus_of_actors(resources: ResourcesSpec) -> float:
    return resources.evaluation_actors * resources.cpus_per_evaluation_actor


def _free_gpu_shares(resources: ResourcesSpec, gpus: float) -> list[float] | None:
    """What is free of each GPU when the evaluation actors are spread over them; None if they do not fit."""
    free, share = [1.0] * floor(gpus), resources.gpus_per_evaluation_actor
    for _ in range(resources.evaluation_actors if share > 0 else 0):
        freest = max(range(len(free)), key=free.__getitem__, default=None)
        if freest is None or free[freest] < share - _ROUNDING:
            return None
        free[freest] -= share
    return free


def _gpu_slots(free: list[float], gpus_per_trial: float) -> int:
    """Trials at once: a fraction is a part of one GPU, one or more are whole GPUs."""
    if gpus_per_trial >= 1:
        return floor(sum(share == 1.0 for share in free) / gpus_per_trial)
    return sum(floor(share / gpus_per_trial + _ROUNDING) for share in free)


@dataclass(frozen=True)
class _Shortage:
    """A sentence on the resource that is short, and values of `resources` that need no more than there is."""

    sentence: str
    values: dict[str, float]


def _refusal(resources: ResourcesSpec, machines: Machines) -> str:
    """The shortages, each found with the values of those before it; and all values together, if they are enough."""
    sentences: list[str] = []
    values: dict[str, float] = {}
    for check in (_short_of_gpus_for_actors, _short_of_cpus, _short_of_gpus_for_trials, _short_on_one_machine):
        for shortage in check(resources, machines):
            sentences.append(shortage.sentence)
            values |= shortage.values
            resources = resources.model_copy(update=shortage.values)
    options = " ".join(f"-o resources.{name}={value:g}" for name, value in values.items())
    fits = _trial_slots(resources, machines) >= 1
    return f"resources: {'; '.join(sentences)}. " + (f"This fits: {options}" if fits else "Add machines")


def _short_of_gpus_for_actors(resources: ResourcesSpec, machines: Machines) -> Iterator[_Shortage]:
    share = resources.gpus_per_evaluation_actor
    if _free_gpu_shares(resources, machines.gpus) is not None:
        return
    fitting = floor(machines.gpus) * floor(1 / share + _ROUNDING)
    yield _Shortage(
        f"{resources.evaluation_actors} evaluation actors need {share:g} of a GPU each, there are {machines.gpus:g} "
        "GPUs",
        {"evaluation_actors": fitting} if fitting else {"gpus_per_evaluation_actor": 0.0},
    )


def _short_of_cpus(resources: ResourcesSpec, machines: Machines) -> Iterator[_Shortage]:
    """Lowers the number of evaluation actors if that is enough, else the CPUs of a trial, else what is left."""
    largest = max(cpus for cpus, _ in machines.each)
    wanted, actors = resources.cpus_per_trial, resources.evaluation_actors
    per_actor = resources.cpus_per_evaluation_actor
    if machines.nodes and wanted > largest + _ROUNDING:
        yield _Shortage(
            f"a trial needs {wanted:g} CPUs of one machine, the largest machine has {largest:g}",
            {"cpus_per_trial": _rounded_down(largest)},
        )
        wanted = largest
    left = machines.cpus - actors * per_actor
    if wanted <= left + _ROUNDING:
        return
    fitting_actors = floor((machines.cpus - wanted) / per_actor + _ROUNDING)
    beside_one_actor, beside_trial = machines.cpus - per_actor, machines.cpus - wanted
    values: dict[str, float] = {}
    if fitting_actors >= 1:
        values = {"evaluation_actors": fitting_actors}
    elif left >= 1:
        values = {"cpus_per_trial": _rounded_down(left)}
    elif beside_one_actor > 0:
        values = {"evaluation_actors": 1, "cpus_per_trial": _rounded_down(beside_one_actor)}
    elif beside_trial > 0:
        values = {"evaluation_actors": 1, "cpus_per_evaluation_actor": _rounded_down(beside_trial)}
    yield _Shortage(
        f"{actors} evaluation actors take {actors * per_actor:g} of {machines.cpus:g} CPUs, which leaves "
        f"{max(left, 0):g} for a trial that needs {wanted:g}",
        {name: value for name, value in values.items() if value != getattr(resources, name)},
    )


def _short_of_gpus_for_trials(resources: ResourcesSpec, machines: Machines) -> Iterator[_Shortage]:
    wanted, free = resources.gpus_per_trial, _free_gpu_shares(resources, machines.gpus) or []
    on_one = max(floor(gpus) for _, gpus in machines.each)
    if wanted == 0 or (_gpu_slots(free, wanted) >= 1 and wanted <= on_one):
        return
    whole = min(sum(share == 1.0 for share in free), on_one)
    fitting = float(whole) if wanted >= 1 and whole else _rounded_down(max(free, default=0.0))
    taken = sum(1.0 - share for share in free)
    yield _Shortage(
        f"a trial needs {wanted:g} GPUs of one machine, the cluster has {machines.gpus:g} GPUs with at most {on_one:g} "
        f"on a machine, and evaluation actors take {taken:g}",
        {"gpus_per_trial": fitting},
    )


def _short_on_one_machine(resources: ResourcesSpec, machines: Machines) -> Iterator[_Shortage]:
    """Enough CPUs here and enough GPUs there are not enough."""
    if resources.gpus_per_trial == 0 or _slots_of_machines(resources, machines) >= 1:
        return
    with_gpus = [cpus for cpus, gpus in machines.each if _gpu_slots([1.0] * floor(gpus), resources.gpus_per_trial)]
    cpus = max(with_gpus, default=0.0)
    yield _Shortage(
        f"a trial needs {resources.cpus_per_trial:g} CPUs and {resources.gpus_per_trial:g} GPUs of one machine, the "
        f"machines with so many GPUs have at most {cpus:g} CPUs",
        {"cpus_per_trial": _rounded_down(cpus)},
    )


def _rounded_down(value: float) -> float:
    """Three decimals, so that a message can name it exactly."""
    return floor(value * 1000 + 1e-6) / 1000
