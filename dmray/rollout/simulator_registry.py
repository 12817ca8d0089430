"""Finds a task's simulator by name: dmray's own in `dmray/rollout/simulators`, another package's in its task family."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

import numpy as np

from dmray.errors import EngineError
from dmray.rollout import simulators
from dmray.rollout.engine import MakeEngine, Simulator, Step, VectorEngine
from dmray.tasks import FAMILIES, Task

_BUILT_IN = frozenset(module.name for module in iter_modules(simulators.__path__))


def simulator_of(task: Task) -> Simulator:
    """The simulator that `task.engine` names; loads its packages.

    Raises:
        EngineError: there is none.
    """
    family = FAMILIES.get((task.protocol, task.family))
    if family is not None and family.simulator is not None and family.engine == task.engine:
        found = family.simulator()
    elif task.engine in _BUILT_IN:
        found = import_module(f"{simulators.__name__}.{task.engine}").SIMULATOR
    else:
        raise EngineError(
            f"{task.name}: the {task.family} family has no engine here (it would need '{task.engine}'); there are "
            + ", ".join(f"{engine} ({', '.join(sorted(names))})" for engine, names in sorted(_families().items()))
        )
    if not isinstance(found, Simulator):
        kind = type(found).__name__
        raise EngineError(f"{task.name}: the simulator of '{task.engine}' is a {kind}, not a dmray.rollout.Simulator")
    return found


def make_engine(task: Task, num_episodes: int) -> VectorEngine:
    """A fresh engine for `num_episodes` episodes at a time.

    Raises:
        EngineError: the task's family has no engine here, or its sizes are not the simulator's.
    """
    return _make(simulator_of(task).make_engine, task, num_episodes)


def make_reference_engine(task: Task, num_episodes: int) -> VectorEngine:
    """As `make_engine`; a slower engine of the same results where only that one can be placed."""
    simulator = simulator_of(task)
    return _make(simulator.make_reference or simulator.make_engine, task, num_episodes)


def _make(make: MakeEngine, task: Task, num_episodes: int) -> VectorEngine:
    assert num_episodes > 0, num_episodes
    engine = make(task.without_zeros(), num_episodes)
    return _WithZeros(engine, task.zero_dims) if task.zero_dims else engine


class _WithZeros:
    """An engine with zeros behind each observation, where a policy was trained on numbers that no simulator shows."""

    def __init__(self, engine: VectorEngine, count: int) -> None:
        self._engine, self._count = engine, count

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        return self._padded(self._engine.reset(seeds))

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        step = self._engine.step(actions, live)
        return step._replace(observations=self._padded(step.observations))

    def close(self) -> None:
        self._engine.close()

    def _padded(self, observations: np.ndarray) -> np.ndarray:
        return np.pad(observations, ((0, 0), (0, self._count)))


def _families() -> dict[str, set[str]]:
    """For each engine the families that use it."""
    found: dict[str, set[str]] = {}
    for family in FAMILIES.values():
        found.setdefault(family.engine, set()).add(family.name)
    return found
