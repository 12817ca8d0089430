"""The toy family: a point on a line, which is paid for each step that ends near zero."""

from __future__ import annotations

from dmray.tasks import ReferenceScores, Task, TaskFamily

LINE = Task(
    name="toy-line",
    family="toy",
    protocol="toy",
    engine="toy",
    env_id="line",
    observation_parts=(("position", 1),),
    observation_dim=1,
    action_dim=1,
    action_limit=1.0,
    horizon=20,
    reference=ReferenceScores(0.0, 20.0, "dmray-toy: no step paid, every step paid"),
    target_returns=(15.0,),
    return_scale=1.0,
    targets_source="dmray-toy",
)


def _simulator() -> object:
    from dmray_toy.simulator import SIMULATOR  # loaded when an episode is rolled out, not when a sweep is planned

    return SIMULATOR


TOY = TaskFamily(tasks=(LINE,), behaviours=("homing",), simulator=_simulator)
