"""Execution on Ray. No other package imports ray."""

from dmray.execution.on_ray.runner import RayRunner

__all__ = ["RayRunner"]
