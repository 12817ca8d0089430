"""The evaluation pool alone, without trials: for stored checkpoints that are evaluated again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from math import floor

import ray

from dmray.driver.sweep_evaluation import OpenService
from dmray.errors import ClusterError
from dmray.on_ray.cluster import connected
from dmray.on_ray.evaluation_pool import EvaluationPool, RemoteEvaluation
from dmray.on_ray.liveness import RayWatch
from dmray.on_ray.placement import Machines
from dmray.planning.plan import Plan
from dmray.records import SweepFolder
from dmray.specs import ResourcesSpec


@contextlib.contextmanager
def evaluation_on_ray(address: str | None, plan: Plan, folder: SweepFolder) -> Iterator[OpenService]:
    """Evaluation actors on all CPUs of the cluster at `address`, or of one that is started on this machine.

    Each actor has the resources that the sweep's file gives it. Their number does not change a result.

    Raises:
        ClusterError: no cluster answers, or not one actor fits on it.
        ClusterLostError: Ray ended, or does not answer any more.
    """
    own_ray = address in (None, "local") and not ray.is_initialized()
    watch = RayWatch(folder, [], plan.sweep.faults, own_ray)
    with watch.ending_in_time(), connected(address, plan) as machines, watch.watching():
        resources = _with_all_actors(plan.sweep.resources, machines)
        attempt = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        pool = EvaluationPool.start(resources, attempt, faults=plan.sweep.faults)
        watch.follow(pool.dispatcher)
        yield OpenService(RemoteEvaluation(pool.dispatcher_name), resources.evaluation_actors)


def _with_all_actors(resources: ResourcesSpec, machines: Machines) -> ResourcesSpec:
    """As many evaluation actors as fit, whatever the sweep's file says about their number."""
    cpus, gpus = resources.cpus_per_evaluation_actor, resources.gpus_per_evaluation_actor
    fit = sum(
        min(floor(has_cpus / cpus + 1e-9), floor(floor(1 / gpus + 1e-9) * has_gpus) if gpus else 10**9)
        for has_cpus, has_gpus in machines.each
    )
    if fit < 1:
        raise ClusterError(
            f"not one evaluation actor fits: it needs {cpus:g} CPUs and {gpus:g} GPUs of one machine "
            f"(resources.*_per_evaluation_actor), and the cluster has {machines.cpus:g} CPUs and {machines.gpus:g} GPUs"
        )
    return resources.model_copy(update={"evaluation_actors": fit})
