"""Execution on Ray. No other package imports ray."""

from dmray.execution.on_ray.layout import lay_out
from dmray.execution.on_ray.runner import RayRunner, machines_at

__all__ = ["RayRunner", "lay_out", "machines_at"]
