"""Many independent copies of one MuJoCo model: one compiled model, one simulator state each."""

from __future__ import annotations

import mujoco
import numpy as np


class Bodies:
    """`count` copies of `model` that never see each other.

    `states` (E, nq + nv) float64 holds positions, then velocities of each copy; it is kept up in place, and is for the
    caller to read only. Each copy keeps the solver's last forces as its next first guess, as one environment of its own
    would: stepping is bit for bit what a loop over single environments gives.
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
        """Put all of them to `states` (E, nq + nv), with nothing left of what was before."""
        self.states[:] = states
        for data, positions, velocities, _, position, velocity in self._handles:
            mujoco.mj_resetData(self._model, data)
            positions[:], velocities[:] = position, velocity

    def set_velocities(self, rows: np.ndarray, velocities: np.ndarray) -> None:
        """Change the velocities of `rows` (L,) to `velocities` (L, nv), and nothing else."""
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
