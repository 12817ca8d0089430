"""D4RL's kitchen: a Franka arm gets a reward once for each of four elements that it brings to its goal.

Observation (60,): positions of the robot 9 and of objects 21, as noisy sensors show them, then the goal 30 (zeros but
for the four elements). Action: a velocity per joint in [-1, 1]. Reward: how many elements are reached for the first
time in the episode; done when all four are. As in D4RL an element is reached when its *observed* positions are less
than .3 from its goal, and the arm is driven from its observed, not its true, positions.

The model is gymnasium-robotics' FrankaKitchen (as envpool ships it), whose own environment is no D4RL kitchen: its 59
numbers hold velocities and no goal, it pays by true positions, and it gives each object the sensor noise of the joint
before it. envpool's compiles the model once for each episode, 80 MB and a fifth of a second each.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np

from dmray.datasets import RecordedTransitions, Subtask
from dmray.errors import EngineError
from dmray.rollout.behaviours import Arm, record_pushes
from dmray.rollout.engine import Scene, Simulator, Step, check_sizes
from dmray.rollout.mujoco_models import MujocoBatch, camera_at
from dmray.specs import Generation
from dmray.tasks import Task

_ROBOT, _POSITIONS = 9, 30
_SUBSTEPS = 40
_TOP_SPEED = 2.0  # of a joint at action 1, rad/s or m/s
_MODEL = "mujoco/robotics/assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml"

# Of the joints: the limits that commands are clipped to, and where an episode starts (robot, then objects).
_LOW = np.array([-2.9, -1.8, -2.9, -3.1, -2.9, 0.0, -2.9, 0.0, 0.0])
_HIGH = np.array([2.9, 1.8, 2.9, 0.0, 2.9, 3.8, 2.9, 0.04, 0.04])
_START = np.array([
    1.48388023e-01, -1.76848573e00, 1.84390296e00, -2.47685760e00, 2.60252026e-01, 7.12533105e-01, 1.59515394e00,
    4.79267505e-02, 3.71350919e-02, -2.66279850e-04, -5.18043486e-05, 3.12877220e-05, -4.51199853e-05, -3.90842156e-06,
    -4.22629655e-05, 6.28065475e-05, 4.04984708e-05, 4.62730939e-04, -2.26906415e-04, -4.65501369e-04, -6.44129196e-03,
    -1.77048263e-03, 1.08009684e-03, -2.69397440e-01, 3.50383255e-01, 1.61944683e00, 1.00618764e00, 4.06395120e-03,
    -6.62095997e-03, -2.68278933e-04,
])  # fmt: skip
_NOISE = 0.1  # of the sensors' amplitudes, by position: uniform in plus or minus
_AMPLITUDES = np.repeat([0.1, 0.005, 0.0005, 0.005, 0.1, 0.005, 0.1, 0.005], [9, 2, 6, 3, 3, 3, 3, 1])


class KitchenEngine:
    """`VectorEngine` of the kitchen family; a task's `subtasks` are the elements that it pays for.

    Raises:
        EngineError: the task pays for none, its sizes are wrong, or the model is not installed.
    """

    def __init__(self, task: Task, num_episodes: int) -> None:
        if not task.subtasks:
            raise EngineError(f"{task.name}: a kitchen task needs subtasks, the elements that it pays for")
        self._subtasks = [Subtask(**goal._asdict()) for goal in task.subtasks]
        check_sizes(task, observation_dim=2 * _POSITIONS, action_dim=_ROBOT)
        model = kitchen_model(task)
        self._kitchens = MujocoBatch(model, num_episodes)
        self._step_s = _SUBSTEPS * model.opt.timestep
        self._start = np.concatenate([_START, np.zeros(model.nv)])
        self._start[:_ROBOT] = np.clip(_START[:_ROBOT], _LOW, _HIGH)
        self._shown = np.zeros((num_episodes, 2 * _POSITIONS))  # the latest observations
        for subtask in self._subtasks:
            self._shown[:, _POSITIONS + np.array(subtask.columns)] = subtask.goal
        self._done = np.zeros((num_episodes, len(self._subtasks)), dtype=bool)
        self._elapsed = np.zeros(num_episodes, dtype=np.int64)
        self._rngs: list[np.random.Generator] = []
        self._horizon = task.horizon

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See `VectorEngine.reset`."""
        assert len(seeds) == len(self._elapsed), "one seed an episode"
        self._rngs = [np.random.default_rng(seed) for seed in seeds]
        self._kitchens.place(np.tile(self._start, (len(seeds), 1)))
        self._done[:], self._elapsed[:] = False, 0
        return self._look(np.arange(len(seeds))).astype(np.float32)

    def step(self, actions: np.ndarray, live: np.ndarray) -> Step:
        """See `VectorEngine.step`."""
        speeds = _TOP_SPEED * np.clip(actions, -1.0, 1.0).astype(np.float64)
        targets = np.clip(self._shown[live, :_ROBOT] + speeds * self._step_s, _LOW, _HIGH)
        self._kitchens.step(targets, live, _SUBSTEPS)
        shown = self._look(live)
        rewards = self._arrivals(shown, live)
        self._elapsed[live] += 1
        finished = self._done[live].all(axis=1)
        return Step(
            observations=shown.astype(np.float32),
            rewards=rewards,
            terminated=finished,
            truncated=(self._elapsed[live] >= self._horizon) & ~finished,
        )

    def close(self) -> None:
        """Nothing but memory is held."""

    def _look(self, rows: np.ndarray) -> np.ndarray:
        """The sensors' readings of `rows` (L,), (L, 60), with each row's own noise."""
        errors = np.stack([self._rngs[row].uniform(-1.0, 1.0, _POSITIONS) for row in rows])
        self._shown[rows, :_POSITIONS] = self._kitchens.states[rows, :_POSITIONS] + _NOISE * _AMPLITUDES * errors
        shown: np.ndarray = self._shown[rows]
        return shown

    def _arrivals(self, shown: np.ndarray, live: np.ndarray) -> np.ndarray:
        """How many elements each row reaches for the first time, (L,) float64."""
        done = np.stack([subtask.done(shown) for subtask in self._subtasks], axis=1)
        new = done & ~self._done[live]
        self._done[live] |= done
        count: np.ndarray = new.sum(axis=1).astype(np.float64)
        return count


def kitchen_model(task: Task) -> mujoco.MjModel:
    """The kitchen's model, from the files that envpool comes with; found without importing envpool."""
    assets = find_spec("envpool_assets")
    if assets is None or assets.origin is None:
        raise EngineError(f"{task.name}: the kitchen's model comes with envpool; pip install envpool==1.2.5")
    return mujoco.MjModel.from_xml_path(str(Path(assets.origin).parent / _MODEL))


def _scene(task: Task, observations: np.ndarray) -> Scene:
    camera = camera_at([-0.2, 0.5, 2.0], 2.2, azimuth=70, elevation=-35)
    return Scene(kitchen_model(task), observations[:, :_POSITIONS], camera, 0.08)


def _record(task: Task, generation: Generation) -> RecordedTransitions:
    model = kitchen_model(task)
    start = np.concatenate([np.clip(_START[:_ROBOT], _LOW, _HIGH), _START[_ROBOT:]])
    reach = _TOP_SPEED * _SUBSTEPS * model.opt.timestep
    return record_pushes(task, generation, Arm(model, start, _LOW, _HIGH, reach))


SIMULATOR = Simulator(KitchenEngine, recorders=dict.fromkeys(("expert", "play"), _record), scene=_scene)
