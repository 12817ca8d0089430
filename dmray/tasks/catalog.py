"""The tasks: seven families on MuJoCo, the paper's locomotion on PyBullet, Minari's locomotion on the v5 environments.

Reference scores and horizons are D4RL's (`d4rl/infos.py`). Minari publishes no reference scores for its mujoco sets;
where a set brings none, 0 is the random policy's return in its v5 environment (ours: 100 episodes, MuJoCo 3.6.0), and
100 is D4RL's expert return of the older environment, as a scale. Target returns are Chen
et al.'s (arXiv 2106.01345) for hopper, halfcheetah and walker2d, CORL's for maze2d and antmaze. Where nobody has
established any, they are ours and say so; those of bullet are the best returns in its data (as the paper's figures
show them) and half of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dmray.tasks.task import ReferenceScores, Task

PROTOCOLS = MUJOCO, BULLET, MINARI = "d4rl-mujoco", "d4rl-bullet", "minari"
_D4RL, _CHEN, _CORL, _OURS = "D4RL infos.py", "Chen et al. 2021", "CORL", "dmray (none established)"
_V5_SCALE = "dmray: random policy on v5, D4RL's expert return on v2"
ANT_CONTACT_FORCES = 84  # 14 bodies x 6, which D4RL's ant files append; its environment of today does not show them


@dataclass(frozen=True)
class _Family:
    """What the tasks of a family share under a protocol."""

    name: str
    protocol: str
    engine: str
    observation: tuple[tuple[str, int], ...]
    action_dim: int
    return_scale: float
    targets_source: str
    appendix_dim: int = 0
    success_return: float | None = None  # maze2d, antmaze: the goal was reached; kitchen: all four elements


def _robot(hidden: str, positions: int, velocities: int) -> tuple[tuple[str, int], ...]:
    return (f"positions without {hidden}", positions), ("velocities", velocities)


def _bullet_robot(joints: int, feet: int) -> tuple[tuple[str, int], ...]:
    return ("body", 8), ("joint angles and speeds", 2 * joints), ("feet on the ground", feet)


_HOPPER, _WALKER, _ANT = _robot("x", 5, 6), _robot("x", 8, 9), _robot("x and y", 13, 14)
_POINT, _ANT_IN_MAZE = (("position", 2), ("velocity", 2)), (("positions", 15), ("velocities", 14))
_KITCHEN = (("robot positions", 9), ("object positions", 21), ("goal", 30))

_FAMILIES = {
    "hopper": _Family("hopper", MUJOCO, "envpool", _HOPPER, 3, 1000.0, _CHEN),
    "halfcheetah": _Family("halfcheetah", MUJOCO, "envpool", _WALKER, 6, 1000.0, _CHEN),
    "walker2d": _Family("walker2d", MUJOCO, "envpool", _WALKER, 6, 1000.0, _CHEN),
    "ant": _Family("ant", MUJOCO, "envpool", _ANT, 8, 1000.0, _OURS, ANT_CONTACT_FORCES),
    "maze2d": _Family("maze2d", MUJOCO, "maze2d", _POINT, 2, 1.0, _CORL, success_return=1.0),
    "antmaze": _Family("antmaze", MUJOCO, "antmaze", _ANT_IN_MAZE, 8, 1.0, _CORL, success_return=1.0),
    "kitchen": _Family("kitchen", MUJOCO, "kitchen", _KITCHEN, 9, 1.0, _OURS, success_return=4.0),
    "bullet-hopper": _Family("hopper", BULLET, "bullet", _bullet_robot(3, 1), 3, 1000.0, _OURS),
    "bullet-halfcheetah": _Family("halfcheetah", BULLET, "bullet", _bullet_robot(6, 6), 6, 1000.0, _OURS),
    "bullet-walker2d": _Family("walker2d", BULLET, "bullet", _bullet_robot(6, 2), 6, 1000.0, _OURS),
    "bullet-ant": _Family("ant", BULLET, "bullet", _bullet_robot(8, 4), 8, 1000.0, _OURS),
    "minari-hopper": _Family("hopper", MINARI, "envpool", _HOPPER, 3, 1000.0, _OURS),
    "minari-halfcheetah": _Family("halfcheetah", MINARI, "envpool", _WALKER, 6, 1000.0, _OURS),
    "minari-walker2d": _Family("walker2d", MINARI, "envpool", _WALKER, 6, 1000.0, _OURS),
    "minari-ant": _Family("ant", MINARI, "envpool", (*_ANT, ("contact forces", 78)), 8, 1000.0, _OURS),
}

# task: family, env_id, horizon, reference minimum and maximum, target returns
_TASKS: Mapping[str, tuple[str, str, int, tuple[float, float], tuple[float, ...]]] = {
    "hopper": ("hopper", "Hopper-v4", 1000, (-20.272305, 3234.3), (3600, 1800)),
    "halfcheetah": ("halfcheetah", "HalfCheetah-v4", 1000, (-280.178953, 12135.0), (12000, 6000)),
    "walker2d": ("walker2d", "Walker2d-v4", 1000, (1.629008, 4592.3), (5000, 2500)),
    "ant": ("ant", "Ant-v4", 1000, (-325.6, 3879.7), (6000, 3600)),
    "maze2d-open": ("maze2d", "open", 150, (0.01, 20.66), (100, 50)),
    "maze2d-umaze": ("maze2d", "umaze", 300, (23.85, 161.86), (280, 140)),
    "maze2d-medium": ("maze2d", "medium", 600, (13.13, 277.39), (280, 140)),
    "maze2d-large": ("maze2d", "large", 800, (6.7, 273.99), (280, 140)),
    "antmaze-umaze": ("antmaze", "umaze", 700, (0.0, 1.0), (1, 0.5)),
    "antmaze-medium": ("antmaze", "medium", 1000, (0.0, 1.0), (1, 0.5)),
    "antmaze-large": ("antmaze", "large", 1000, (0.0, 1.0), (1, 0.5)),
    "kitchen-complete": ("kitchen", "complete", 280, (0.0, 4.0), (4, 2)),
    "kitchen-partial": ("kitchen", "partial", 280, (0.0, 4.0), (4, 2)),
    "kitchen-mixed": ("kitchen", "mixed", 280, (0.0, 4.0), (4, 2)),
    "bullet-hopper": ("bullet-hopper", "bullet-hopper-medium-v0", 1000, (20.058972, 1441.8059623430963), (2242, 1121)),
    "bullet-halfcheetah": (
        "bullet-halfcheetah", "bullet-halfcheetah-medium-v0", 1000, (-1275.766996, 2381.6725), (1725, 862.5)
    ),
    "bullet-walker2d": (
        "bullet-walker2d", "bullet-walker2d-medium-v0", 1000, (16.523877, 1623.6476303317536), (1837, 918.5)
    ),
    "bullet-ant": ("bullet-ant", "bullet-ant-medium-v0", 1000, (373.705955, 2650.495), (2717, 1358.5)),
    "minari-hopper": ("minari-hopper", "Hopper-v5", 1000, (15.93, 3234.3), (3600, 1800)),
    "minari-halfcheetah": ("minari-halfcheetah", "HalfCheetah-v5", 1000, (-285.46, 12135.0), (12000, 6000)),
    "minari-walker2d": ("minari-walker2d", "Walker2d-v5", 1000, (1.236, 4592.3), (5000, 2500)),
    "minari-ant": ("minari-ant", "Ant-v5", 1000, (-52.70, 3879.7), (6000, 3600)),
}  # fmt: skip
_OWN_TARGETS = {"maze2d-open"}  # its 150 steps cannot pay CORL's 280


def _task(name: str) -> Task:
    family, env_id, horizon, reference, targets = _TASKS[name]
    shared = _FAMILIES[family]
    return Task(
        name=name,
        family=shared.name,
        protocol=shared.protocol,
        engine=shared.engine,
        env_id=env_id,
        observation_parts=shared.observation,
        observation_dim=sum(size for _, size in shared.observation),
        action_dim=shared.action_dim,
        action_limit=1.0,
        horizon=horizon,
        reference=ReferenceScores(*reference, _V5_SCALE if shared.protocol == MINARI else _D4RL),
        target_returns=tuple(float(target) for target in targets),
        return_scale=shared.return_scale,
        targets_source=_OURS if name in _OWN_TARGETS else shared.targets_source,
        success_return=shared.success_return,
        appendix_dim=shared.appendix_dim,
    )


TASKS: Mapping[str, Task] = {name: _task(name) for name in _TASKS}
