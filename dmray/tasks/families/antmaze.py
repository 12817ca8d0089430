"""D4RL's antmaze: an ant that walks to a goal in a maze. Its simulator: `dmray/rollout/simulators/antmaze.py`.

The files' rewards and terminals are relabelled: an episode may be at the goal for hundreds of steps, where evaluation
ends at the first. So terminals do not split episodes, and rewards after the first are read as zero.
"""

from __future__ import annotations

from dmray.tasks.d4rl import CORL, D4RL, FILES, LICENSE, MUJOCO
from dmray.tasks.family import TaskFamily
from dmray.tasks.task import DatasetEntry, ReferenceScores, Task


def _task(layout: str, horizon: int) -> Task:
    return Task(
        name=f"antmaze-{layout}",
        family="antmaze",
        protocol=MUJOCO,
        engine="antmaze",
        env_id=layout,
        observation_parts=(("positions", 15), ("velocities", 14)),
        observation_dim=29,
        action_dim=8,
        action_limit=1.0,
        horizon=horizon,
        reference=ReferenceScores(0.0, 1.0, D4RL),
        target_returns=(1.0, 0.5),
        return_scale=1.0,
        targets_source=CORL,
        success_return=1.0,  # the goal was reached
        splits_on_terminals=False,
        ends_at_first_reward=True,
    )


def _entry(name: str, task: str, maze: str, many_starts: bool, many_goals: bool) -> DatasetEntry:
    file = f"Ant_maze_{maze}_noisy_multistart_{many_starts}_multigoal_{many_goals}_sparse_fixed"
    return DatasetEntry(name, task, f"{FILES}/ant_maze_v2/{file}.hdf5")


_DATASETS = (
    _entry("antmaze-umaze-v2", "antmaze-umaze", "u-maze", False, False),
    _entry("antmaze-umaze-diverse-v2", "antmaze-umaze", "u-maze", True, True),
    _entry("antmaze-medium-play-v2", "antmaze-medium", "big-maze", True, False),
    _entry("antmaze-medium-diverse-v2", "antmaze-medium", "big-maze", True, True),
    _entry("antmaze-large-play-v2", "antmaze-large", "hardest-maze", True, False),
    _entry("antmaze-large-diverse-v2", "antmaze-large", "hardest-maze", True, True),
)
FAMILIES = (
    TaskFamily(
        data_license=LICENSE,
        simulator_packages=("gymnasium", "mujoco"),
        tasks=(_task("umaze", 700), _task("medium", 1000), _task("large", 1000)),
        datasets=_DATASETS,
        retired={
            entry.name.removesuffix("2") + version: (
                f"its timeouts and goals are wrong, D4RL withdrew it; use '{entry.name}'"
            )
            for entry in _DATASETS
            for version in "01"
        },
    ),
)
