"""The published data sets: D4RL's files with their addresses, and Minari's ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dmray.tasks.task import DatasetEntry

_HOST = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
MINARI_SCHEME = "minari://"
_ROBOTS = ("hopper", "halfcheetah", "walker2d", "ant")
_BEHAVIOURS = ("random", "medium", "medium-replay", "medium-expert", "full-replay", "expert")
_V0_BEHAVIOURS = ("random", "medium", "medium-replay", "medium-expert", "expert")

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
# data set: maze in the file's name, many starts, many goals
_ANTMAZE = {
    "antmaze-umaze-v2": ("u-maze", False, False),
    "antmaze-umaze-diverse-v2": ("u-maze", True, True),
    "antmaze-medium-play-v2": ("big-maze", True, False),
    "antmaze-medium-diverse-v2": ("big-maze", True, True),
    "antmaze-large-play-v2": ("hardest-maze", True, False),
    "antmaze-large-diverse-v2": ("hardest-maze", True, True),
}

RETIRED: Mapping[str, str] = {  # published, and not to be used: why
    name.removesuffix("2") + version: f"its timeouts and goals are wrong, D4RL withdrew it; use '{name}'"
    for name in _ANTMAZE
    for version in "01"
}


def _locomotion() -> Iterator[DatasetEntry]:
    for robot in _ROBOTS:
        for behaviour in _BEHAVIOURS:
            file = f"{robot}_{behaviour.replace('-', '_')}-v2"
            yield DatasetEntry(f"{robot}-{behaviour}-v2", robot, f"{_HOST}/gym_mujoco_v2/{file}.hdf5")
        for behaviour in _V0_BEHAVIOURS:
            file = f"{robot}_{behaviour.replace('-', '_')}".replace("medium_replay", "mixed")
            file = "walker_mixed" if file == "walker2d_mixed" else file
            yield DatasetEntry(f"{robot}-{behaviour}-v0", robot, f"{_HOST}/gym_mujoco/{file}.hdf5")


def _mazes_and_kitchen() -> Iterator[DatasetEntry]:
    for folder, files in (("maze2d", _MAZE2D), ("kitchen", _KITCHEN)):
        for name, file in files.items():
            yield DatasetEntry(name, name.rpartition("-")[0], f"{_HOST}/{folder}/{file}.hdf5")
    for name, (maze, starts, goals) in _ANTMAZE.items():
        file = f"Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_sparse_fixed"
        yield DatasetEntry(name, "-".join(name.split("-")[:2]), f"{_HOST}/ant_maze_v2/{file}.hdf5")


def _other_protocols() -> Iterator[DatasetEntry]:
    for robot in _ROBOTS:
        for behaviour in _V0_BEHAVIOURS:
            file = f"bullet-{robot}_{behaviour.replace('-', '_')}"
            yield DatasetEntry(f"bullet-{robot}-{behaviour}-v0", f"bullet-{robot}", f"{_HOST}/bullet/{file}.hdf5")
        for behaviour in ("simple", "medium", "expert"):
            url = f"{MINARI_SCHEME}mujoco/{robot}/{behaviour}-v0"
            yield DatasetEntry(f"minari-{robot}-{behaviour}-v0", f"minari-{robot}", url)


DATASETS: Mapping[str, DatasetEntry] = {
    entry.name: entry for entries in (_locomotion(), _mazes_and_kitchen(), _other_protocols()) for entry in entries
}
