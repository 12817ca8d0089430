"""D4RL's antmaze: an ant with eight joints walks through a maze, with cells 4 wide, to a goal that it does not observe.

Observation (29,): positions 15 (x, y, height, quaternion, joints), then velocities 14; the goal is not in it. Action: a
torque per joint in [-1, 1]. Reward 1 for the step that ends within .5 of the goal, which ends the episode; else 0.
Falling does not end it. Each episode draws its own goal (as D4RL's v2 resets do). Ten decisions a second.

The ant is gymnasium's with D4RL's differences: time steps of .02 s, softer contacts, and torques of 30 where
gymnasium's are 150. gymnasium-robotics' AntMaze is another task: 20 Hz, stronger torques, a smaller goal that does not
end the episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gymnasium
import mujoco
import numpy as np

from dmray.errors import EngineError
from dmray.registry import lookup
from dmray.rollout.engine import FloorPlan, Scene, Simulator, Step, check_sizes
from dmray.rollout.mazes import LAYOUTS
from dmray.rollout.mujoco_models import MujocoBatch, camera_above
from dmray.tasks import Task

GOAL_RADIUS = 0.5
CELL = 4.0  # a cell's side; walls are half as high
START_CELL = (1, 1)  # its middle is the origin; x grows with the column, y with the row
GOAL_CELLS: Mapping[str, tuple[int, int]] = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}

_SUBSTEPS, _TIME_STEP_S = 5, 0.02
_TORQUE = 30.0
_SOFTNESS = (0.8, 0.8, 0.01)  # D4RL's contacts; MuJoCo's defaults follow
_POSITIONS, _VELOCITIES = 15, 14
_SPREAD = 0.1  # of the start: uniform for positions, normal for velocities


def ant_in_maze(maze: str) -> mujoco.MjModel:
    """D4RL's model of the ant among the walls of layout `maze`."""
    spec = mujoco.MjSpec.from_file(str(Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml"))
    spec.option.timestep = _TIME_STEP_S
    for cell in np.argwhere(LAYOUTS[maze].walls):
        block = spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, contype=1, conaffinity=1)
        block.pos, block.size = [*middle_of(cell), CELL / 4], [CELL / 2, CELL / 2, CELL / 4]
    model = spec.compile()
    model.geom_solimp[:, : len(_SOFTNESS)] = _SOFTNESS
    return model


def middle_of(cell: np.ndarray | tuple[int, int]) -> np.ndarray:
    """Position (2,) of the middle of `cell` (row, column)."""
    row, column = cell
    return CELL * np.array([column - START_CELL[1], row - START_CELL[0]], dtype=np.float64)


def draw_goal(maze: str, rng: np.random.Generator) -> np.ndarray:
    """An episode's goal (2,): the goal cell's middle, shifted by two draws, of up to a quarter and an eighth of a cell
    along each axis. They are the first draws from the episode's seed.
    """
    shift = rng.uniform(0, CELL / 4, 2) + rng.uniform(0, CELL / 8, 2)
    return np.maximum(middle_of(GOAL_CELLS[maze]) + shift, 0.0)


class AntMazeEngine:
    """`VectorEngine` of the antmaze family; a task's `env_id` names the layout."""

    def __init__(self, task: Task, num_episodes: int) -> None:
        check_sizes(task, observation_dim=_POSITIONS + _VELOCITIES, action_dim=8)
        lookup("maze", task.env_id, GOAL_CELLS, EngineError)
        self._maze = task.env_id
        model = ant_in_maze(task.env_id)
        self._rest = np.concatenate([model.qpos0, np.zeros(_VELOCITIES)])
        self._torque = _TORQUE / model.actuator_gear[:, 0]
        self._ants = MujocoBatch(model, num_episodes)
        self._goals = np.zeros((num_episodes, 2))
        self._elapsed = np.zeros(num_episodes, dtype=np.int64)
        self._horizon = task.horizon

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `VectorEngine.reset`."""
        rngs = [np.random.default_rng(seed) for seed in seeds]
        assert len(rngs) == len(self._goals), "one seed an episode"
        self._goals[:] = [draw_goal(self._maze, rng) for rng in rngs]
        return self.place(np.stack([self._random_start(rng) for rng in rngs]))

    def place(self, observations: np.ndarray) -> np.ndarray:
        """See `PlaceableEngine.place`; the goals stay."""
        self._ants.place(observations)
        self._elapsed[:] = 0
        return self._ants.states.astype(np.float32)

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        """See `VectorEngine.step`."""
        self._ants.step(np.clip(actions, -1.0, 1.0) * self._torque, live, _SUBSTEPS)
        self._elapsed[live] += 1
        states = self._ants.states[live]
        arrived = np.linalg.norm(states[:, :2] - self._goals[live], axis=1) <= GOAL_RADIUS
        return Step(
            observations=states.astype(np.float32),
            rewards=arrived.astype(np.float64),
            terminated=arrived,
            truncated=(self._elapsed[live] >= self._horizon) & ~arrived,
        )

    def close(self) -> None:
        """Nothing but memory is held."""

    def _random_start(self, rng: np.random.Generator) -> np.ndarray:
        noise = [rng.uniform(-_SPREAD, _SPREAD, _POSITIONS), _SPREAD * rng.standard_normal(_VELOCITIES)]
        start: np.ndarray = self._rest + np.concatenate(noise)
        return start


def _scene(task: Task, observations: np.ndarray) -> Scene:
    rows, columns = LAYOUTS[task.env_id].walls.shape
    middle = CELL * (np.array([columns, rows]) / 2 - 1.5)
    camera = camera_above(middle, CELL * max(rows, columns), x_is_row=False)
    return Scene(ant_in_maze(task.env_id), observations[:, :15], camera, 0.1)


def _floor_plan(task: Task) -> FloorPlan:
    return FloorPlan(
        LAYOUTS[task.env_id].walls,
        scale=1 / CELL,
        shift=float(START_CELL[1]),
        x_is_row=False,
        goal_radius=GOAL_RADIUS,
        goals=lambda seeds: np.stack([draw_goal(task.env_id, np.random.default_rng(seed)) for seed in seeds]),
    )


SIMULATOR = Simulator(AntMazeEngine, scene=_scene, floor_plan=_floor_plan)
