"""D4RL's maze2d: a point mass that is pushed to a fixed goal and paid for every step near it.

Observation (x, y, vx, vy); action a force per axis in [-1, 1]; reward 1 for a step that ends within .5 of the goal,
else 0; no termination. The physics are those of D4RL's model (and of gymnasium-robotics' PointMaze, in other
coordinates), with the same density, friction and solver settings; the floor is left out, because it pushes along no
axis that the point can move on.

Data sets can be recorded here, in D4RL's layout, from a controller that knows the maze, with noise on its actions:

* `play`: on to another random cell each time a target is reached, with no reset;
* `expert`: whole episodes from a random start to the evaluation goal, where it stays until the horizon (the number of
  transitions is rounded up to whole episodes);
* `mixed`: half of each, expert first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from math import ceil

import mujoco
import numpy as np

from dmray.datasets import RecordedTransitions
from dmray.errors import EngineError
from dmray.registry import lookup
from dmray.rollout.engine import FloorPlan, Scene, Simulator, Step, check_sizes
from dmray.rollout.mazes import LAYOUTS, MazeLayout, WaypointController, cell_of, middle_of
from dmray.rollout.mujoco_models import MujocoBatch, camera_above
from dmray.specs import Generation
from dmray.tasks import Task

GOAL_RADIUS = 0.5
TOP_SPEED = 5.0  # per axis; a force could drive it up without bound
ACTION_NOISE = 0.5  # standard deviation, when recording; D4RL's noisy maze data have the same
ARRIVED = 0.1  # a target of `play` is reached within this distance
_START_SPREAD = 0.1
_LANE_HORIZONS = 5  # a lane of `play` lasts this many horizons: long compared with the way between two targets

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
# Only in films.
_FLOOR = '<geom type="box" pos="{} {} -0.2" size="{} {} 0.1" contype="0" conaffinity="0" rgba=".95 .96 .98 1"/>'
_POINT_RADIUS = 0.1
_POINT_COLOUR, _WALL_COLOUR = (0.84, 0.37, 0.0, 1.0), (0.28, 0.32, 0.4, 1.0)


def point_model(maze: MazeLayout) -> mujoco.MjModel:
    """A point mass among the walls of `maze`."""
    return mujoco.MjModel.from_xml_string(_MODEL.format(walls=_walls(maze)))


def _walls(maze: MazeLayout) -> str:
    return "".join(_WALL.format(x, y) for x, y in middle_of(np.argwhere(maze.walls)))


class PointMasses:
    """Independent simulations of a point mass in one maze.

    `states` (E, 4) float64 holds (x, y, vx, vy) of each; it is updated in place, and callers only read it.
    """

    def __init__(self, maze: MazeLayout, count: int) -> None:
        self._points = MujocoBatch(point_model(maze), count)
        self.states = self._points.states

    def place(self, states: np.ndarray) -> None:
        """Reset all simulations, then set them to `states` (E, 4)."""
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
        """See `PlaceableEngine.place`."""
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
        """Nothing but memory is held."""


def record_maze(task: Task, generation: Generation) -> RecordedTransitions:
    """Transitions of the controller's behaviour that `generation` names (see above); decided by its seed, bit for bit.

    Raises:
        EngineError: there is no such maze.
    """
    maze = lookup("maze", task.env_id, LAYOUTS, EngineError)
    streams = [np.random.default_rng(each) for each in np.random.SeedSequence(generation.seed).spawn(2)]
    count = generation.transitions
    if generation.behaviour == "expert":
        return _expert(maze, task.horizon, count, streams[0])
    if generation.behaviour == "play":
        return _play(maze, task.horizon, count, streams[1])
    assert generation.behaviour == "mixed", generation.behaviour
    halves = (
        _expert(maze, task.horizon, ceil(count / 2), streams[0]),
        _play(maze, task.horizon, max(1, count // 2), streams[1]),
    )
    return RecordedTransitions.joined(halves)


def _expert(maze: MazeLayout, horizon: int, count: int, rng: np.random.Generator) -> RecordedTransitions:
    return _record(maze, ceil(count / horizon), horizon, wander=False, rng=rng)


def _play(maze: MazeLayout, horizon: int, count: int, rng: np.random.Generator) -> RecordedTransitions:
    lanes = ceil(count / (_LANE_HORIZONS * horizon))
    recorded = _record(maze, lanes, ceil(count / lanes), wander=True, rng=rng)
    kept = {field.name: getattr(recorded, field.name)[:count] for field in fields(recorded)}
    kept["timeouts"][-1] = True
    return RecordedTransitions(**kept)


def _record(maze: MazeLayout, lanes: int, steps: int, wander: bool, rng: np.random.Generator) -> RecordedTransitions:
    """`lanes` points in lockstep for `steps` steps; a timeout at each lane's last step and at each target reached."""
    points, controller, every = PointMasses(maze, lanes), WaypointController(maze), np.arange(lanes)
    points.place(np.stack([random_start(maze, rng) for _ in every]))
    targets = np.tile(maze.goal, (lanes, 1))
    if wander:
        targets = _other_cells(maze, targets, rng)
    observations, actions = np.empty((lanes, steps, 4), np.float32), np.empty((lanes, steps, 2), np.float32)
    goals, rewards = np.empty((lanes, steps, 2), np.float32), np.empty((lanes, steps), np.float32)
    timeouts = np.zeros((lanes, steps), dtype=bool)
    for t in range(steps):
        noise = ACTION_NOISE * rng.standard_normal((lanes, 2))
        observations[:, t], goals[:, t] = points.states, targets
        actions[:, t] = np.clip(controller.act(points.states, targets) + noise, -1.0, 1.0)
        points.step(actions[:, t], every)
        rewards[:, t] = within(points.states, maze.goal, GOAL_RADIUS)
        if wander:
            arrived = within(points.states, targets, ARRIVED)
            targets[arrived] = _other_cells(maze, targets[arrived], rng)
            timeouts[:, t] = arrived
    timeouts[:, -1] = True
    return RecordedTransitions(
        observations=observations.reshape(-1, 4),
        actions=actions.reshape(-1, 2),
        rewards=rewards.reshape(-1),
        terminals=np.zeros(lanes * steps, dtype=bool),
        timeouts=timeouts.reshape(-1),
        goals=goals.reshape(-1, 2),
    )


def _other_cells(maze: MazeLayout, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each of `targets` (n, 2) a random free cell that is not it."""
    choices = [maze.free_cells[(maze.free_cells != target).any(axis=1)] for target in targets]
    return np.array([cells[rng.integers(len(cells))] for cells in choices], dtype=np.float64).reshape(-1, 2)


def _scene(task: Task, observations: np.ndarray) -> Scene:
    maze = LAYOUTS[task.env_id]
    rows, columns = maze.walls.shape
    middle, side = np.array([rows, columns]) / 2 - 0.7, 2 * max(rows, columns)  # a floor that fills the picture
    model = mujoco.MjModel.from_xml_string(_MODEL.format(walls=_walls(maze) + _FLOOR.format(*middle, side, side)))
    model.geom_rgba[:-2], model.geom_rgba[-1] = _WALL_COLOUR, _POINT_COLOUR  # the walls, the floor, the point
    model.geom_size[:-2, 2] = _POINT_RADIUS  # lower walls, which hide nothing from above
    camera = camera_above(middle, max(rows, columns), x_is_row=True)
    return Scene(model, observations[:, :2], camera, 0.01, ground=-_POINT_RADIUS)


def _floor_plan(task: Task) -> FloorPlan:
    maze = LAYOUTS[task.env_id]
    assert (cell_of(np.zeros(2)) == 0).all()
    return FloorPlan(
        maze.walls,
        scale=1.0,
        shift=-float(middle_of(np.zeros(2))[0]),
        x_is_row=True,
        goal_radius=GOAL_RADIUS,
        goals=lambda seeds: np.tile(maze.goal, (len(seeds), 1)),
    )


SIMULATOR = Simulator(
    Maze2dEngine,
    recorders=dict.fromkeys(("play", "expert", "mixed"), record_maze),
    scene=_scene,
    floor_plan=_floor_plan,
)
