"""The paper's bullet-* tasks, whose packages need not be there."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from dmray.tasks import TASKS, Task

needs_bullet = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("gym", "d4rl", "pybullet")), reason="needs `make bullet`"
)


def bullet(robot: str) -> Task:
    return TASKS[f"bullet-{robot}"]
