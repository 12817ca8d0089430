"""D4RL's maze2d: a point mass that is pushed to a fixed goal. Its simulator: `dmray/rollout/simulators/maze2d.py`."""

from __future__ import annotations

from dmray.tasks.d4rl import CORL, D4RL, FILES, LICENSE, MUJOCO, OURS
from dmray.tasks.family import TaskFamily
from dmray.tasks.task import DatasetEntry, ReferenceScores, Task

_OBSERVATION = (("position", 2), ("velocity", 2))


def _task(
    layout: str, horizon: int, reference: tuple[float, float], targets: tuple[float, float], source: str = CORL
) -> Task:
    return Task(
        name=f"maze2d-{layout}",
        family="maze2d",
        protocol=MUJOCO,
        engine="maze2d",
        env_id=layout,
        observation_parts=_OBSERVATION,
        observation_dim=4,
        action_dim=2,
        action_limit=1.0,
        horizon=horizon,
        reference=ReferenceScores(*reference, D4RL),
        target_returns=targets,
        return_scale=1.0,
        targets_source=source,
        success_return=1.0,  # the goal was reached
    )


def _entry(name: str, task: str, file: str) -> DatasetEntry:
    return DatasetEntry(name, task, f"{FILES}/maze2d/{file}.hdf5")


FAMILIES = (
    TaskFamily(
        data_license=LICENSE,
        simulator_packages=("mujoco",),
        tasks=(
            _task("open", 150, (0.01, 20.66), (100.0, 50.0), OURS),  # its 150 steps cannot pay CORL's 280
            _task("umaze", 300, (23.85, 161.86), (280.0, 140.0)),
            _task("medium", 600, (13.13, 277.39), (280.0, 140.0)),
            _task("large", 800, (6.7, 273.99), (280.0, 140.0)),
        ),
        datasets=(
            _entry("maze2d-open-v0", "maze2d-open", "maze2d-open-sparse"),
            _entry("maze2d-umaze-v1", "maze2d-umaze", "maze2d-umaze-sparse-v1"),
            _entry("maze2d-medium-v1", "maze2d-medium", "maze2d-medium-sparse-v1"),
            _entry("maze2d-large-v1", "maze2d-large", "maze2d-large-sparse-v1"),
        ),
        behaviours=("play", "expert", "mixed"),
        calibration_task="maze2d-umaze",
    ),
)
