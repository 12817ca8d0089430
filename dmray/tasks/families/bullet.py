"""The paper's own locomotion: D4RL's robots on PyBullet. Its simulator: `dmray/rollout/simulators/bullet.py`.

Target returns are ours: the best returns in the data (as the paper's figures show them), and half of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from dmray.tasks.d4rl import D4RL, FILES, LICENSE, OURS
from dmray.tasks.family import TaskFamily
from dmray.tasks.task import DatasetEntry, ReferenceScores, Task

BULLET = "d4rl-bullet"
_BEHAVIOURS = ("random", "medium", "medium-replay", "medium-expert", "expert")


def _family(
    robot: str, joints: int, feet: int, reference: tuple[float, float], targets: tuple[float, float]
) -> TaskFamily:
    parts = (("body", 8), ("joint angles and speeds", 2 * joints), ("feet on the ground", feet))
    task = Task(
        name=f"bullet-{robot}",
        family=robot,
        protocol=BULLET,
        engine="bullet",
        env_id=f"bullet-{robot}-medium-v0",
        observation_parts=parts,
        observation_dim=sum(size for _, size in parts),
        action_dim=joints,
        action_limit=1.0,
        horizon=1000,
        reference=ReferenceScores(*reference, D4RL),
        target_returns=targets,
        return_scale=1000.0,
        targets_source=OURS,
    )
    return TaskFamily(
        tasks=(task,),
        datasets=tuple(_datasets(robot)),
        data_license=LICENSE,
        simulator_packages=("pybullet", "gym", "d4rl"),
        optional_packages=True,
    )


def _datasets(robot: str) -> Iterator[DatasetEntry]:
    for behaviour in _BEHAVIOURS:
        file = f"bullet-{robot}_{behaviour.replace('-', '_')}"
        yield DatasetEntry(f"bullet-{robot}-{behaviour}-v0", f"bullet-{robot}", f"{FILES}/bullet/{file}.hdf5")


FAMILIES = (
    _family("hopper", 3, 1, (20.058972, 1441.8059623430963), (2242.0, 1121.0)),
    _family("halfcheetah", 6, 6, (-1275.766996, 2381.6725), (1725.0, 862.5)),
    _family("walker2d", 6, 2, (16.523877, 1623.6476303317536), (1837.0, 918.5)),
    _family("ant", 8, 4, (373.705955, 2650.495), (2717.0, 1358.5)),
)
