"""Behaviour cloning of a sequence policy, one optimizer step at a time; training resumes exactly where it stopped."""

from dmray.training.determinism import be_deterministic
from dmray.training.trainer import Sampler, StepMetrics, Trainer

__all__ = ["Sampler", "StepMetrics", "Trainer", "be_deterministic"]
