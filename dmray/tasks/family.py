"""A task family: everything that depends on the kind of environment and its protocol.

A built-in family has two files: `dmray/tasks/families/<family>.py` holds its `TaskFamily`, and
`dmray/rollout/simulators/<engine>.py` holds its `Simulator` (engine, replay, recorders, drawing), which needs packages
that planning must not load. A family of another package is one object: its `simulator` returns the `Simulator`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from dmray.errors import PluginError
from dmray.tasks.task import DatasetEntry, Task

RANDOM: Final = "random"  # uniform random actions: the behaviour that every task can record


@dataclass(frozen=True)
class TaskFamily:
    """The tasks of one family under one protocol, which share family, protocol and engine.

    * `datasets`: the published data sets of these tasks.
    * `retired`: published data sets that must not be used, with the reason.
    * `behaviours`: what `generate:` can record in these tasks beside random actions; the simulator has the recorders.
    * `calibration_task`: the task whose speed stands for the engine in a calibration; by default the first task.
    * `simulator_packages`: the packages whose releases decide the simulator's numbers: scores share a mean only where
      these are equal.
    * `optional_packages`: the simulator needs packages that dmray does not require.
    * `data_license`: the licence of all `datasets`, as the Hugging Face Hub writes it ("cc-by-4.0"); empty: not known.
    * `simulator`: a function that imports and returns a `dmray.rollout.Simulator`. None for an engine that dmray has.

    Raises:
        PluginError: the parts contradict each other.
    """

    tasks: tuple[Task, ...]
    datasets: tuple[DatasetEntry, ...] = ()
    retired: Mapping[str, str] = field(default_factory=dict)
    behaviours: tuple[str, ...] = ()
    calibration_task: str | None = None
    simulator_packages: tuple[str, ...] = ()
    optional_packages: bool = False
    data_license: str = ""
    simulator: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise PluginError("a task family needs at least one task")
        first, names = self.tasks[0], [task.name for task in self.tasks]
        for task in self.tasks:
            shared = (task.family, task.protocol, task.engine)
            if shared != (first.family, first.protocol, first.engine):
                raise PluginError(
                    f"tasks '{first.name}' and '{task.name}' of one family must share family, protocol and engine"
                )
            parts = sum(size for _, size in task.observation_parts)
            if parts != task.observation_dim:
                raise PluginError(
                    f"task '{task.name}': observation_parts have {parts} numbers, observation_dim is "
                    f"{task.observation_dim}"
                )
        for entry in self.datasets:
            if entry.task not in names:
                raise PluginError(f"data set '{entry.name}': its task '{entry.task}' is not one of {', '.join(names)}")
        if self.calibration_task not in (None, *names):
            raise PluginError(f"calibration_task '{self.calibration_task}' is not one of {', '.join(names)}")
        if RANDOM in self.behaviours:
            raise PluginError(f"behaviour '{RANDOM}' is every task's already; leave it out of behaviours")

    @property
    def name(self) -> str:
        return self.tasks[0].family

    @property
    def protocol(self) -> str:
        return self.tasks[0].protocol

    @property
    def engine(self) -> str:
        return self.tasks[0].engine

    @property
    def task_to_calibrate(self) -> Task:
        """The task whose speed stands for the engine."""
        named = (task for task in self.tasks if task.name == self.calibration_task)
        return next(named, self.tasks[0])
