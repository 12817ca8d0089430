"""For simulators that run MuJoCo models themselves: many independent simulations of one model, and cameras."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np


class MujocoBatch:
    """`count` independent simulations of `model`, which share the compiled model.

    `states` (E, nq + nv) float64 holds each simulation's positions, then its velocities; it is updated in place, and
    callers only read it. Each simulation starts the solver from its own last forces, as a single environment does:
    stepping is bit for bit what a loop over single environments gives.
    """

    def __init__(self, model: mujoco.MjModel, count: int) -> None:
        self._model = model
        self.states = np.zeros((count, model.nq + model.nv))
        data = [mujoco.MjData(model) for _ in range(count)]
        self._handles = [  # views, made once: slicing would cost as much as a step of a small model
            (each, each.qpos, each.qvel, each.ctrl, state[: model.nq], state[model.nq :])
            for each, state in zip(data, self.states, strict=True)
        ]

    def place(self, states: np.ndarray) -> None:
        """Reset all simulations, then set them to `states` (E, nq + nv)."""
        self.states[:] = states
        for data, positions, velocities, _, position, velocity in self._handles:
            mujoco.mj_resetData(self._model, data)
            positions[:], velocities[:] = position, velocity

    def set_velocities(self, rows: np.ndarray, velocities: np.ndarray) -> None:
        """Set the velocities of `rows` (L,) to `velocities` (L, nv), and nothing else."""
        for row, velocity in zip(rows.tolist(), velocities, strict=True):
            self._handles[row][2][:] = velocity
            self._handles[row][5][:] = velocity

    def step(self, controls: np.ndarray, rows: np.ndarray, substeps: int = 1) -> None:
        """Advance `rows` (L,) by `substeps` of the model's time steps under `controls` (L, nu), held throughout."""
        model, mj_step = self._model, mujoco.mj_step
        for row, wanted in zip(rows.tolist(), controls, strict=True):
            data, positions, velocities, control, position, velocity = self._handles[row]
            control[:] = wanted
            mj_step(model, data, substeps)
            position[:], velocity[:] = positions, velocities


def camera_at(lookat: Sequence[float], distance: float, azimuth: float, elevation: float) -> mujoco.MjvCamera:
    """A camera `distance` away from the point `lookat` (x, y, z); angles in degrees."""
    camera = mujoco.MjvCamera()
    camera.lookat[:], camera.distance = lookat, distance
    camera.azimuth, camera.elevation = azimuth, elevation
    return camera


def camera_above(middle: np.ndarray, extent: float, x_is_row: bool) -> mujoco.MjvCamera:
    """A camera that looks down on an area around `middle` (x, y) which is `extent` wide, turned as a `FloorPlan`.

    With `x_is_row` x goes downwards and y to the right; otherwise x goes to the right and y upwards.
    """
    return camera_at([*middle, 0.0], 1.3 * extent, azimuth=180 if x_is_row else 90, elevation=-90)
