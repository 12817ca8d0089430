"""D4RL's kitchen: an arm that is paid once for each of four elements. Simulator: `dmray/rollout/simulators/kitchen.py`.

An observation shows 30 positions (9 of the robot, 21 of objects) and their goals. The elements' columns and goals are
D4RL's (`d4rl/kitchen/kitchen_envs.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from dmray.tasks.d4rl import D4RL, FILES, LICENSE, MUJOCO, OURS
from dmray.tasks.family import TaskFamily
from dmray.tasks.task import DatasetEntry, ReferenceScores, SubtaskGoal, Task

_WITHIN = 0.3  # Euclidean distance of an element's positions to its goal

ELEMENTS: Mapping[str, SubtaskGoal] = {
    element.name: element
    for element in (
        SubtaskGoal("bottom burner", (11, 12), (-0.88, -0.01), _WITHIN),
        SubtaskGoal("top burner", (15, 16), (-0.92, -0.01), _WITHIN),
        SubtaskGoal("light switch", (17, 18), (-0.69, -0.05), _WITHIN),
        SubtaskGoal("slide cabinet", (19,), (0.37,), _WITHIN),
        SubtaskGoal("hinge cabinet", (20, 21), (0.0, 1.45), _WITHIN),
        SubtaskGoal("microwave", (22,), (-0.75,), _WITHIN),
        SubtaskGoal("kettle", (23, 24, 25, 26, 27, 28, 29), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06), _WITHIN),
    )
}


def _task(layout: str, *elements: str) -> Task:
    return Task(
        name=f"kitchen-{layout}",
        family="kitchen",
        protocol=MUJOCO,
        engine="kitchen",
        env_id=layout,
        observation_parts=(("robot positions", 9), ("object positions", 21), ("goal", 30)),
        observation_dim=60,
        action_dim=9,
        action_limit=1.0,
        horizon=280,
        reference=ReferenceScores(0.0, 4.0, D4RL),
        target_returns=(4.0, 2.0),
        return_scale=1.0,
        targets_source=OURS,
        success_return=4.0,  # all four elements
        subtasks=tuple(ELEMENTS[element] for element in elements),
    )


def _entry(name: str, task: str, file: str) -> DatasetEntry:
    return DatasetEntry(name, task, f"{FILES}/kitchen/{file}.hdf5")


FAMILIES = (
    TaskFamily(
        behaviours=("expert", "play"),
        data_license=LICENSE,
        simulator_packages=("mujoco",),
        tasks=(
            _task("complete", "microwave", "kettle", "light switch", "slide cabinet"),
            _task("partial", "microwave", "kettle", "light switch", "slide cabinet"),
            _task("mixed", "microwave", "kettle", "bottom burner", "light switch"),
        ),
        datasets=(
            _entry("kitchen-complete-v0", "kitchen-complete", "mini_kitchen_microwave_kettle_light_slider-v0"),
            _entry("kitchen-partial-v0", "kitchen-partial", "kitchen_microwave_kettle_light_slider-v0"),
            _entry("kitchen-mixed-v0", "kitchen-mixed", "kitchen_microwave_kettle_bottomburner_light-v0"),
        ),
    ),
)
