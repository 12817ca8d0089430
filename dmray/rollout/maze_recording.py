"""The embedded data source: maze2d transitions recorded on the spot, in D4RL's layout, from a noisy controller.

Shapes: N transitions, recorded as L lanes of T steps each in lockstep and laid end to end.
"""

from __future__ import annotations

from dataclasses import fields
from math import ceil

import numpy as np

from dmray.errors import EngineError
from dmray.registry import lookup
from dmray.rollout.maze2d import GOAL_RADIUS, PointMasses, random_start, within
from dmray.rollout.maze_controller import WaypointController
from dmray.rollout.maze_layouts import LAYOUTS, MazeLayout
from dmray.rollout.recording import RecordedTransitions, joined
from dmray.specs import Generation
from dmray.tasks import Task

ACTION_NOISE = 0.5  # standard deviation; D4RL's noisy maze data have the same
ARRIVED = 0.1  # a target of `play` is reached within this distance
_LANE_HORIZONS = 5  # a lane of `play` lasts this many horizons: long beside the way between two targets


def record_maze(task: Task, generation: Generation) -> RecordedTransitions:
    """Transitions of the behaviour that `generation` names; the same for the same seed, bit for bit.

    * `play`: on to another random cell each time a target is reached, with no reset (exactly `transitions` of them);
    * `expert`: whole episodes from a random start to the evaluation goal, where it stays until the horizon
      (`transitions` is rounded up to whole episodes);
    * `mixed`: half of each, expert first.

    Raises:
        EngineError: the task is not of the maze2d family.
    """
    if task.engine != "maze2d":
        raise EngineError(f"{task.name}: only maze2d tasks can be recorded, this one is of the {task.family} family")
    maze = lookup("maze", task.env_id, LAYOUTS, EngineError)
    streams = [np.random.default_rng(each) for each in np.random.SeedSequence(generation.seed).spawn(2)]
    count = generation.transitions
    if generation.behaviour == "expert":
        return _expert(maze, task.horizon, count, streams[0])
    if generation.behaviour == "play":
        return _play(maze, task.horizon, count, streams[1])
    halves = (
        _expert(maze, task.horizon, ceil(count / 2), streams[0]),
        _play(maze, task.horizon, max(1, count // 2), streams[1]),
    )
    return joined(halves)


def _expert(maze: MazeLayout, horizon: int, count: int, rng: np.random.Generator) -> RecordedTransitions:
    return _record(maze, ceil(count / horizon), horizon, wander=False, rng=rng)


def _play(maze: MazeLayout, horizon: int, count: int, rng: np.random.Generator) -> RecordedTransitions:
    lanes = ceil(count / (_LANE_HORIZONS * horizon))
    recorded = _record(maze, lanes, ceil(count / lanes), wander=True, rng=rng)
    kept = {field.name: getattr(recorded, field.name)[:count] for field in fields(recorded)}
    kept["timeouts"][-1] = True
    return RecordedTransitions(**kept)


def _record(maze: MazeLayout, lanes: int, steps: int, wander: bool, rng: np.random.Generator) -> RecordedTransitions:
    """`lanes` points driven for `steps` steps; each lane's last step is a timeout, as is each target reached."""
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
