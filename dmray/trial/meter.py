"""Means of what training measures since the last record. They are in the checkpoint, so a resumed run has the same."""

from __future__ import annotations

import time
from typing import Any

import torch

from dmray.records.records import TrainProgress
from dmray.training import StepMetrics


class Meter:
    """Keeps sums on the training device and reads them back once per record."""

    def __init__(self, stage_names: tuple[str, ...], device: str) -> None:
        self._names = stage_names
        self._sums = torch.zeros(len(stage_names) + 1, device=device)
        self._steps = 0
        self._seconds = 0.0
        self._started = time.perf_counter()

    def add(self, metrics: StepMetrics) -> None:
        """Add the metrics of steps, (steps, stages): one after the other, so that sums do not depend on the calls."""
        for losses, norm in zip(metrics.stage_losses, metrics.grad_norm, strict=True):
            self._sums[:-1] += losses
            self._sums[-1] += norm
            self._steps += 1

    @property
    def steps(self) -> int:
        """Steps since the last record."""
        return self._steps

    @property
    def finite(self) -> bool:
        """Whether every loss and gradient since the last record was finite; waits for the device."""
        return bool(self._sums.isfinite().all())

    def record(self, step: int, learning_rate: float) -> TrainProgress | None:
        """The means since the last record, and a reset; None when a loss was not finite."""
        self._clock()
        if not self.finite:
            return None
        *losses, grad_norm = (self._sums / self._steps).tolist()
        rate = self._steps / max(self._seconds, 1e-9)
        self._sums.zero_()
        self._steps, self._seconds = 0, 0.0
        return TrainProgress(
            time_s=time.time(),
            step=step,
            loss=sum(losses),
            stage_losses=dict(zip(self._names, losses, strict=True)),
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            steps_per_s=rate,
        )

    def state_dict(self) -> dict[str, Any]:
        self._clock()
        return {"sums": self._sums.clone(), "steps": self._steps, "seconds": self._seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums.copy_(state["sums"])
        self._steps, self._seconds = state["steps"], state["seconds"]
        self._started = time.perf_counter()

    def _clock(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._started
        self._started = now
