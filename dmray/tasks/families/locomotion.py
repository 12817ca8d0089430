"""D4RL's locomotion on MuJoCo: hopper, halfcheetah, walker2d, ant. Simulator: `dmray/rollout/simulators/envpool.py`.

The environments are gymnasium's v4, which the v2 files agree with; v5 changes rewards and friction.
"""

from __future__ import annotations

from collections.abc import Iterator

from dmray.tasks.d4rl import CHEN, D4RL, FILES, LICENSE, MUJOCO, OURS
from dmray.tasks.family import TaskFamily
from dmray.tasks.task import DatasetEntry, ReferenceScores, Task

_BEHAVIOURS = ("random", "medium", "medium-replay", "medium-expert", "full-replay", "expert")
_V0_BEHAVIOURS = ("random", "medium", "medium-replay", "medium-expert", "expert")
_RECORDED = ("medium", "expert", "medium-expert", "medium-replay")
_RECORDED_IN = ("hopper", "halfcheetah", "walker2d")  # those with policies in dmray/rollout/behaviours
_CONTACT_FORCES = 84  # 14 bodies x 6, which D4RL's ant files append; its environment of today does not show them


def _family(
    robot: str,
    env_id: str,
    parts: tuple[tuple[str, int], ...],
    action_dim: int,
    reference: tuple[float, float],
    targets: tuple[float, float],
    targets_source: str = CHEN,
    appendix_dim: int = 0,
) -> TaskFamily:
    task = Task(
        name=robot,
        family=robot,
        protocol=MUJOCO,
        engine="envpool",
        env_id=env_id,
        observation_parts=parts,
        observation_dim=sum(size for _, size in parts),
        action_dim=action_dim,
        action_limit=1.0,
        horizon=1000,
        reference=ReferenceScores(*reference, D4RL),
        target_returns=targets,
        return_scale=1000.0,
        targets_source=targets_source,
        appendix_dim=appendix_dim,
    )
    return TaskFamily(
        tasks=(task,),
        datasets=tuple(_datasets(robot)),
        behaviours=_RECORDED if robot in _RECORDED_IN else (),
        data_license=LICENSE,
        simulator_packages=("envpool",),
    )


def _datasets(robot: str) -> Iterator[DatasetEntry]:
    for behaviour in _BEHAVIOURS:
        file = f"{robot}_{behaviour.replace('-', '_')}-v2"
        yield DatasetEntry(f"{robot}-{behaviour}-v2", robot, f"{FILES}/gym_mujoco_v2/{file}.hdf5")
    for behaviour in _V0_BEHAVIOURS:
        file = f"{robot}_{behaviour.replace('-', '_')}".replace("medium_replay", "mixed")
        file = "walker_mixed" if file == "walker2d_mixed" else file
        yield DatasetEntry(f"{robot}-{behaviour}-v0", robot, f"{FILES}/gym_mujoco/{file}.hdf5")


def robot_parts(hidden: str, positions: int, velocities: int) -> tuple[tuple[str, int], ...]:
    """The parts of a robot's observation; the positions `hidden` are not observed."""
    return (f"positions without {hidden}", positions), ("velocities", velocities)


FAMILIES = (
    _family("hopper", "Hopper-v4", robot_parts("x", 5, 6), 3, (-20.272305, 3234.3), (3600.0, 1800.0)),
    _family("halfcheetah", "HalfCheetah-v4", robot_parts("x", 8, 9), 6, (-280.178953, 12135.0), (12000.0, 6000.0)),
    _family("walker2d", "Walker2d-v4", robot_parts("x", 8, 9), 6, (1.629008, 4592.3), (5000.0, 2500.0)),
    _family(
        "ant",
        "Ant-v4",
        robot_parts("x and y", 13, 14),
        8,
        (-325.6, 3879.7),
        (6000.0, 3600.0),
        targets_source=OURS,
        appendix_dim=_CONTACT_FORCES,
    ),
)
