"""What a simulator provides: an engine that steps many episodes of a task together, recorders, replay and drawing.

Shapes: E episodes of the engine, L of them live (being stepped), S `observation_dim`, A `action_dim`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from dmray.datasets import RecordedTransitions
from dmray.errors import EngineError
from dmray.specs import Generation
from dmray.tasks import Task


class Step(NamedTuple):
    """The results of one step for the rows that were stepped, in the order of the arguments."""

    observations: np.ndarray  # (L, S) float32
    rewards: np.ndarray  # (L,) float64, raw
    terminated: np.ndarray  # (L,) bool, the task ended the episode
    truncated: np.ndarray  # (L,) bool, the horizon did; never both


class VectorEngine(Protocol):
    """Independent episodes of one task. Episode e is decided by its seed and its own actions, bit for bit.

    No episode is reset by itself: a row that ended is not stepped again before the next `reset`.
    """

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start all E episodes anew, episode e from `seeds[e]`; the first observations (E, S) float32."""

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        """Advance the episodes `live` (L,) int64, distinct, by `actions` (L, A), clipped to the task's limit."""

    def close(self) -> None:
        """Free the simulator; may be called twice, nothing else may be called after it."""


@runtime_checkable
class PlaceableEngine(VectorEngine, Protocol):
    """An engine whose state can be rebuilt from an observation (positions that no observation shows are zero)."""

    def place(self, observations: np.ndarray) -> np.ndarray:
        """Start all episodes at `observations` (E, S) instead of at their seeds' starts; returns what they show."""


@dataclass(frozen=True)
class Scene:
    """What a film shows: a MuJoCo model, its positions in each frame, a camera, and the seconds between two frames.

    `ground`: the height of the floor, where the goal is marked.
    """

    model: Any
    positions: np.ndarray  # (T, nq)
    camera: Any  # a camera's number in the model, or an MjvCamera
    step_s: float
    ground: float = 0.0


@dataclass(frozen=True)
class FloorPlan:
    """The ground that an episode's path is drawn on: cells with columns to the right.

    Rows go downwards where x runs along them, upwards where y does: so the picture is what a camera above shows. A
    cell's middle is at whole numbers (column, row). `goals` gives the goal of each episode, (n, 2) in the
    simulator's coordinates, for the seeds of n episodes.
    """

    walls: np.ndarray  # (rows, columns) bool
    scale: float  # cells per unit of length
    shift: float  # of a position's coordinates, in cells
    x_is_row: bool
    goal_radius: float  # in units of length
    goals: Callable[[Sequence[int]], np.ndarray]

    def at(self, positions: np.ndarray) -> np.ndarray:
        """(column, row) (..., 2) of observations or positions (..., at least 2)."""
        cells = positions[..., :2] * self.scale + self.shift
        return cells[..., ::-1] if self.x_is_row else cells


MakeEngine = Callable[[Task, int], VectorEngine]  # the task and the number of episodes
Recorder = Callable[[Task, Generation], RecordedTransitions]


@dataclass(frozen=True)
class Simulator:
    """All that one simulator can do. What it cannot do is None, and asking for it is an `EngineError`.

    * `make_engine`: a fresh engine; raises `EngineError` where a package is missing or the task's sizes are wrong.
    * `make_reference`: an equal but slower engine that can be placed, where `make_engine` gives one that cannot;
      recorded files are replayed in it.
    * `recorders`: for each behaviour of the families that use it a function that records it; the same for the same
      seed. `TaskFamily.behaviours` says which of them a family has.
    * `scene`: for an episode's observations (T, S) float64, what a film of it shows.
    * `floor_plan`: for tasks whose first two observation numbers are a position, what a path is drawn on.
    """

    make_engine: MakeEngine
    make_reference: MakeEngine | None = None
    recorders: Mapping[str, Recorder] = field(default_factory=dict)
    scene: Callable[[Task, np.ndarray], Scene] | None = None
    floor_plan: Callable[[Task], FloorPlan] | None = None


def check_sizes(task: Task, observation_dim: int, action_dim: int) -> None:
    """Compare the task's declared sizes with the simulator's.

    Raises:
        EngineError: they differ, so nothing trained for the task could act in it.
    """
    declared, actual = (task.observation_dim, task.action_dim), (observation_dim, action_dim)
    if declared != actual:
        raise EngineError(
            f"{task.name}: declared (observation, action) sizes {declared}, but {task.env_id} has {actual}"
        )
