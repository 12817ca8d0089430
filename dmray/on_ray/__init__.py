"""Execution on Ray. No other package imports ray, and this one only when something is to be run or a cluster asked."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dmray.on_ray.placement import machine_here, machines_like, overload, place_trials

if TYPE_CHECKING:
    from dmray.on_ray.cluster import machines_at
    from dmray.on_ray.runner import RayRunner
    from dmray.on_ray.sweep_evaluation import evaluation_on_ray

__all__ = [
    "RayRunner",
    "evaluation_on_ray",
    "machine_here",
    "machines_at",
    "machines_like",
    "overload",
    "place_trials",
]
_MODULES = {"machines_at": "cluster", "evaluation_on_ray": "sweep_evaluation", "RayRunner": "runner"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
