"""The catalog: seven families on MuJoCo, and D4RL's data sets of them.

Reference scores, horizons and addresses are D4RL's (`d4rl/infos.py`). Target returns are Chen et al.'s (arXiv
2106.01345) for hopper, halfcheetah and walker2d, CORL's for maze2d and antmaze; for ant, kitchen and maze2d-open nobody
has established any, so those are ours and say so.

ant is Ant-v4's 27 numbers; D4RL's ant files append 84 contact forces to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dmray.tasks.task import DatasetEntry, ReferenceScores, Task

PROTOCOL = "d4rl-mujoco"
_HOST = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
_D4RL, _CHEN, _CORL, _OURS = "D4RL infos.py", "Chen et al. 2021", "CORL", "dmray (none established)"


@dataclass(frozen=True)
class _Family:
    """What the tasks of a family share."""

    engine: str
    observation_dim: int
    action_dim: int
    return_scale: float
    targets_source: str


_FAMILIES = {
    "hopper": _Family("gymnasium", 11, 3, 1000.0, _CHEN),
    "halfcheetah": _Family("gymnasium", 17, 6, 1000.0, _CHEN),
    "walker2d": _Family("gymnasium", 17, 6, 1000.0, _CHEN),
    "ant": _Family("gymnasium", 27, 8, 1000.0, _OURS),
    "maze2d": _Family("maze2d", 4, 2, 1.0, _CORL),
    "antmaze": _Family("antmaze", 29, 8, 1.0, _CORL),
    "kitchen": _Family("kitchen", 60, 9, 1.0, _OURS),
}

# task: family, env_id, horizon, reference minimum and maximum, target returns
_TASKS: Mapping[str, tuple[str, str, int, float, float, tuple[float, ...]]] = {
    "hopper": ("hopper", "Hopper-v4", 1000, -20.272305, 3234.3, (3600, 1800)),
    "halfcheetah": ("halfcheetah", "HalfCheetah-v4", 1000, -280.178953, 12135.0, (12000, 6000)),
    "walker2d": ("walker2d", "Walker2d-v4", 1000, 1.629008, 4592.3, (5000, 2500)),
    "ant": ("ant", "Ant-v4", 1000, -325.6, 3879.7, (6000, 3600)),
    "maze2d-open": ("maze2d", "open", 150, 0.01, 20.66, (100, 50)),
    "maze2d-umaze": ("maze2d", "umaze", 300, 23.85, 161.86, (280, 140)),
    "maze2d-medium": ("maze2d", "medium", 600, 13.13, 277.39, (280, 140)),
    "maze2d-large": ("maze2d", "large", 800, 6.7, 273.99, (280, 140)),
    "antmaze-umaze": ("antmaze", "umaze", 700, 0.0, 1.0, (1, 0.5)),
    "antmaze-medium": ("antmaze", "medium", 1000, 0.0, 1.0, (1, 0.5)),
    "antmaze-large": ("antmaze", "large", 1000, 0.0, 1.0, (1, 0.5)),
    "kitchen-complete": ("kitchen", "complete", 280, 0.0, 4.0, (4, 2)),
    "kitchen-partial": ("kitchen", "partial", 280, 0.0, 4.0, (4, 2)),
    "kitchen-mixed": ("kitchen", "mixed", 280, 0.0, 4.0, (4, 2)),
}
_OWN_TARGETS = {"maze2d-open"}  # its 150 steps cannot pay CORL's 280

_LOCOMOTION = ("random", "medium", "medium-replay", "medium-expert", "full-replay", "expert")
_MAZE2D = {
    "maze2d-open-v0": "maze2d-open-sparse",
    "maze2d-umaze-v1": "maze2d-umaze-sparse-v1",
    "maze2d-medium-v1": "maze2d-medium-sparse-v1",
    "maze2d-large-v1": "maze2d-large-sparse-v1",
}
_KITCHEN = {
    "kitchen-complete-v0": "mini_kitchen_microwave_kettle_light_slider-v0",
    "kitchen-partial-v0": "kitchen_microwave_kettle_light_slider-v0",
    "kitchen-mixed-v0": "kitchen_microwave_kettle_bottomburner_light-v0",
}
# data set: maze in the file's name, many starts, many goals (v0's goals and timeouts are wrong; v2 mends them)
_ANTMAZE = {
    "antmaze-umaze-v2": ("u-maze", False, False),
    "antmaze-umaze-diverse-v2": ("u-maze", True, True),
    "antmaze-medium-play-v2": ("big-maze", True, False),
    "antmaze-medium-diverse-v2": ("big-maze", True, True),
    "antmaze-large-play-v2": ("hardest-maze", True, False),
    "antmaze-large-diverse-v2": ("hardest-maze", True, True),
}


def _task(name: str) -> Task:
    family, env_id, horizon, minimum, maximum, targets = _TASKS[name]
    shared = _FAMILIES[family]
    return Task(
        name=name,
        family=family,
        protocol=PROTOCOL,
        engine=shared.engine,
        env_id=env_id,
        observation_dim=shared.observation_dim,
        action_dim=shared.action_dim,
        action_limit=1.0,
        horizon=horizon,
        reference=ReferenceScores(minimum, maximum, _D4RL),
        target_returns=tuple(float(target) for target in targets),
        return_scale=shared.return_scale,
        targets_source=_OURS if name in _OWN_TARGETS else shared.targets_source,
    )


def _datasets() -> Iterator[DatasetEntry]:
    for robot in ("hopper", "halfcheetah", "walker2d", "ant"):
        for behaviour in _LOCOMOTION:
            file = f"{robot}_{behaviour.replace('-', '_')}-v2"
            yield DatasetEntry(f"{robot}-{behaviour}-v2", robot, f"{_HOST}/gym_mujoco_v2/{file}.hdf5")
    for folder, files in (("maze2d", _MAZE2D), ("kitchen", _KITCHEN)):
        for name, file in files.items():
            yield DatasetEntry(name, name.rpartition("-")[0], f"{_HOST}/{folder}/{file}.hdf5")
    for name, (maze, starts, goals) in _ANTMAZE.items():
        file = f"Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_sparse_fixed"
        yield DatasetEntry(name, "-".join(name.split("-")[:2]), f"{_HOST}/ant_maze_v2/{file}.hdf5")


TASKS: Mapping[str, Task] = {name: _task(name) for name in _TASKS}
DATASETS: Mapping[str, DatasetEntry] = {entry.name: entry for entry in _datasets()}
