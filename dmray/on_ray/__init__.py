"""Execution on Ray. No other package imports ray, and this one only when something is to be run or a cluster asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dmray.on_ray.placement import machine_here, machines_like, overload, place_trials

if TYPE_CHECKING:
    from dmray.on_ray.cluster import machines_at
    from dmray.on_ray.runner import RayRunner

__all__ = ["RayRunner", "machine_here", "machines_at", "machines_like", "overload", "place_trials"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    from dmray.on_ray import cluster, runner

    return getattr(cluster if name == "machines_at" else runner, name)
