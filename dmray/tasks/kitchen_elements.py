"""The kitchen's elements: where each stands in the 30 positions (9 of the robot, 21 of objects), and where it should.

Values are D4RL's (`d4rl/kitchen/kitchen_envs.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

REACHED_WITHIN = 0.3  # Euclidean distance of an element's positions to its goal


@dataclass(frozen=True)
class KitchenElement:
    """`goal` has one value for each of `indices` into the 30 positions."""

    name: str
    indices: tuple[int, ...]
    goal: tuple[float, ...]


ELEMENTS: Mapping[str, KitchenElement] = {
    element.name: element
    for element in (
        KitchenElement("bottom burner", (11, 12), (-0.88, -0.01)),
        KitchenElement("top burner", (15, 16), (-0.92, -0.01)),
        KitchenElement("light switch", (17, 18), (-0.69, -0.05)),
        KitchenElement("slide cabinet", (19,), (0.37,)),
        KitchenElement("hinge cabinet", (20, 21), (0.0, 1.45)),
        KitchenElement("microwave", (22,), (-0.75,)),
        KitchenElement("kettle", (23, 24, 25, 26, 27, 28, 29), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
    )
}
_MICROWAVE_TO_SLIDE = ("microwave", "kettle", "light switch", "slide cabinet")
KITCHEN_TASKS: Mapping[str, tuple[str, ...]] = {
    "complete": _MICROWAVE_TO_SLIDE,
    "partial": _MICROWAVE_TO_SLIDE,
    "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}
