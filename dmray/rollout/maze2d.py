"""D4RL's maze2d: a point mass that is pushed to a fixed goal and paid for every step near it.

Observation (x, y, vx, vy); action a force per axis in [-1, 1]; reward 1 for a step that ends within .5 of the goal,
else 0; no termination. The physics are those of D4RL's model (and of gymnasium-robotics' PointMaze, in other
coordinates), whose density, friction and solver settings the text below repeats; the floor is left out, for it pushes
along no axis that the point can move on.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from dmray.errors import EngineError
from dmray.registry import lookup
from dmray.rollout.bodies import Bodies
from dmray.rollout.engine import Step, check_sizes
from dmray.rollout.maze_layouts import LAYOUTS, MazeLayout, middle_of
from dmray.tasks import Task

GOAL_RADIUS = 0.5
TOP_SPEED = 5.0  # per axis; a force could drive it up without bound
_START_SPREAD = 0.1

_MODEL = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint type="slide" damping="1"/>
    <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/>
    <motor gear="100" ctrllimited="true" ctrlrange="-1 1"/>
  </default>
  <worldbody>
    <body>
      <geom type="sphere" size="0.1" contype="1"/>
      <joint name="x" axis="1 0 0"/>
      <joint name="y" axis="0 1 0"/>
    </body>
    {walls}
  </worldbody>
  <actuator><motor joint="x"/><motor joint="y"/></actuator>
</mujoco>
"""
_WALL = '<geom type="box" size="0.5 0.5 0.5" pos="{} {} 0"/>'


def point_model(maze: MazeLayout) -> mujoco.MjModel:
    """A point mass among the walls of `maze`."""
    walls = (_WALL.format(x, y) for x, y in middle_of(np.argwhere(maze.walls)))
    return mujoco.MjModel.from_xml_string(_MODEL.format(walls="".join(walls)))


class PointMasses:
    """Point masses that do not see each other in one maze.

    `states` (E, 4) float64 holds (x, y, vx, vy) of each; it is kept up in place, and is for the caller to read only.
    """

    def __init__(self, maze: MazeLayout, count: int) -> None:
        self._points = Bodies(point_model(maze), count)
        self.states = self._points.states

    def place(self, states: np.ndarray) -> None:
        """Put all of them to `states` (E, 4), with nothing left of what was before."""
        self._points.place(states)

    def step(self, forces: np.ndarray, rows: np.ndarray) -> None:
        """Advance `rows` (L,) by .01 s under `forces` (L, 2), which are clipped to [-1, 1]."""
        velocities = self.states[rows, 2:]
        speeding = np.flatnonzero((np.abs(velocities) > TOP_SPEED).any(axis=1))
        if speeding.size:
            self._points.set_velocities(rows[speeding], np.clip(velocities[speeding], -TOP_SPEED, TOP_SPEED))
        self._points.step(np.clip(forces, -1.0, 1.0), rows)


def random_start(maze: MazeLayout, rng: np.random.Generator) -> np.ndarray:
    """A first state (4,): any free cell, give or take .1, nearly at rest."""
    cell = maze.free_cells[rng.integers(len(maze.free_cells))]
    position = cell + rng.uniform(-_START_SPREAD, _START_SPREAD, 2)
    return np.concatenate([position, 0.1 * rng.standard_normal(2)])


def within(states: np.ndarray, targets: np.ndarray, radius: float) -> np.ndarray:
    """(E,) bool: which of `states` (E, 4) are at most `radius` from `targets`, (2,) or (E, 2)."""
    near: np.ndarray = np.square(states[:, :2] - targets).sum(axis=1) <= radius**2
    return near


class Maze2dEngine:
    """`VectorEngine` of the maze2d family; a task's `env_id` names the layout."""

    def __init__(self, task: Task, num_episodes: int) -> None:
        check_sizes(task, observation_dim=4, action_dim=2)
        self._maze = lookup("maze", task.env_id, LAYOUTS, EngineError)
        self._points = PointMasses(self._maze, num_episodes)
        self._elapsed = np.zeros(num_episodes, dtype=np.int64)
        self._horizon = task.horizon

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `VectorEngine.reset`."""
        assert len(seeds) == len(self._elapsed), "one seed an episode"
        return self.place(np.stack([random_start(self._maze, np.random.default_rng(seed)) for seed in seeds]))

    def place(self, observations: np.ndarray) -> np.ndarray:
        """Begin all episodes at `observations` (E, 4) and not where their seeds say; returns them."""
        self._points.place(observations)
        self._elapsed[:] = 0
        return self._points.states.astype(np.float32)

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        """See `VectorEngine.step`."""
        self._points.step(actions, live)
        self._elapsed[live] += 1
        states = self._points.states[live]
        return Step(
            observations=states.astype(np.float32),
            rewards=within(states, self._maze.goal, GOAL_RADIUS).astype(np.float64),
            terminated=np.zeros(len(live), dtype=bool),
            truncated=self._elapsed[live] >= self._horizon,
        )

    def close(self) -> None:
        """Nothing to let go of but memory."""
