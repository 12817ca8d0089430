"""Minari's locomotion on gymnasium's v5 environments. Its simulator: `dmray/rollout/simulators/envpool.py`.

Minari publishes no reference scores for its mujoco data sets. Where a set brings none, 0 is the random policy's return
in the v5 environment (ours: 100 episodes, MuJoCo 3.6.0), and 100 is D4RL's expert return in the older environment: a
scale to read curves on, no more. Target returns are ours.
"""

from __future__ import annotations

from dmray.tasks.d4rl import OURS
from dmray.tasks.families.locomotion import robot_parts
from dmray.tasks.family import TaskFamily
from dmray.tasks.task import MINARI_SCHEME, DatasetEntry, ReferenceScores, Task

MINARI = "minari"
_SCALE = "dmray: random policy on v5, D4RL's expert return on v2"
_BEHAVIOURS = ("simple", "medium", "expert")


def _family(
    robot: str,
    env_id: str,
    parts: tuple[tuple[str, int], ...],
    action_dim: int,
    reference: tuple[float, float],
    targets: tuple[float, float],
) -> TaskFamily:
    task = Task(
        name=f"minari-{robot}",
        family=robot,
        protocol=MINARI,
        engine="envpool",
        env_id=env_id,
        observation_parts=parts,
        observation_dim=sum(size for _, size in parts),
        action_dim=action_dim,
        action_limit=1.0,
        horizon=1000,
        reference=ReferenceScores(*reference, _SCALE),
        target_returns=targets,
        return_scale=1000.0,
        targets_source=OURS,
    )
    entries = (
        DatasetEntry(f"minari-{robot}-{behaviour}-v0", task.name, f"{MINARI_SCHEME}mujoco/{robot}/{behaviour}-v0")
        for behaviour in _BEHAVIOURS
    )
    return TaskFamily(tasks=(task,), datasets=tuple(entries), simulator_packages=("envpool",))


FAMILIES = (
    _family("hopper", "Hopper-v5", robot_parts("x", 5, 6), 3, (15.93, 3234.3), (3600.0, 1800.0)),
    _family("halfcheetah", "HalfCheetah-v5", robot_parts("x", 8, 9), 6, (-285.46, 12135.0), (12000.0, 6000.0)),
    _family("walker2d", "Walker2d-v5", robot_parts("x", 8, 9), 6, (1.236, 4592.3), (5000.0, 2500.0)),
    _family(
        "ant",
        "Ant-v5",
        (*robot_parts("x and y", 13, 14), ("contact forces", 78)),
        8,
        (-52.70, 3879.7),
        (6000.0, 3600.0),
    ),
)
