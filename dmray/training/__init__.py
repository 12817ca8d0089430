"""Behaviour cloning of a sequence policy, one optimizer step at a time; training resumes exactly where it stopped."""

from dmray.training.determinism import be_deterministic
from dmray.training.pack import Pack
from dmray.training.trainer import Sampler, StepMetrics, Trainer

__all__ = ["Pack", "Sampler", "StepMetrics", "Trainer", "be_deterministic"]
