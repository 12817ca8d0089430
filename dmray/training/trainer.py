"""The optimizer step, and the state that a run needs to continue as if it had not been interrupted.

The authors train each stage with an AdamW of its own. Stages share no parameter and AdamW updates each number by
itself, so one AdamW on the summed loss, with the gradient clipped per stage, takes the same steps bit for bit.

A step reads no number back and changes tensors in place, so that a GPU can record it once and replay it
(`CapturedStep`). The learning rate is a tensor for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from dmray.policies import SequencePolicy
from dmray.specs import TrainingSpec
from dmray.training.captured_step import CapturedStep
from dmray.training.determinism import tf32_allowed

if TYPE_CHECKING:
    from dmray.datasets import Windows


class Sampler(Protocol):
    """Draws training windows; all randomness comes from the generator."""

    def sample(self, generator: torch.Generator) -> Windows:
        """A batch of windows on the sampler's device. Does not wait for the device."""


class StepMetrics(NamedTuple):
    """What a step measured, detached and still on the device: reading a number waits for it.

    Of several steps: the first dimension of each tensor is the step.
    """

    stage_losses: Tensor  # (stages,) before the step
    grad_norms: Tensor  # (stages,) before clipping

    @property
    def grad_norm(self) -> Tensor:
        """The norm of all stages' gradients together, ()."""
        norm: Tensor = torch.linalg.vector_norm(self.grad_norms, dim=-1)
        return norm


class Trainer:
    """Trains `policy` (on `device`) on windows of `sampler`, deterministically from `seed`.

    It seeds torch's global RNG, which dropout draws from, and its own generator, which batches are drawn by. On a CPU
    two trainers with the same policy, spec and seed take the same steps bit for bit. With `capture` "auto" a GPU's step
    is a CUDA graph; batches and state are those of "off".
    """

    def __init__(
        self,
        policy: SequencePolicy,
        sampler: Sampler,
        spec: TrainingSpec,
        seed: int,
        device: str = "cpu",
        capture: Literal["auto", "off"] = "auto",
    ) -> None:
        self.policy = policy.train()
        self._sampler, self._spec, self._device = sampler, spec, torch.device(device)
        torch.manual_seed(seed)
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._stages = policy.stage_parameters()
        parameters = [parameter for stage in self._stages for parameter in stage]
        rate = torch.zeros((), device=self._device)
        self._optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=spec.weight_decay, fused=True)
        self._steps_done = 0
        self.captured = capture == "auto" and self._device.type == "cuda"
        self._advance = self._begin()

    @property
    def steps_done(self) -> int:
        """Optimizer steps taken so far, over all attempts."""
        return self._steps_done

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self._spec.learning_rate * warm_up(self._steps_done, self._spec.warmup_steps)

    @property
    def is_set_up(self) -> bool:
        """Whether a step was taken as all further ones will be: compiled, and captured if it is to be."""
        return not isinstance(self._advance, CapturedStep) or self._advance.recorded

    def step(self) -> StepMetrics:
        """Draw a batch and take one optimizer step. Does not wait for the device."""
        self._optimizer.param_groups[0]["lr"].fill_(self.learning_rate)
        losses, norms = self._advance()
        self._steps_done += 1
        return StepMetrics(losses, norms)

    def advance(self, most: int) -> StepMetrics:
        """Take at least one and at most `most` steps (one, which returns at once): metrics of (steps, stages)."""
        losses, norms = self.step()
        return StepMetrics(losses[None], norms[None])

    @property
    def device(self) -> str:
        """Where metrics and state are."""
        return self._device.type

    @property
    def scan_backend(self) -> str | None:
        """See `SequencePolicy.scan_backend`."""
        return self.policy.scan_backend

    @property
    def gpu_uuid(self) -> str | None:
        """The GPU that trains; None on a CPU."""
        return str(torch.cuda.get_device_properties(self._device).uuid) if self.device == "cuda" else None

    def close(self) -> None:
        """Nothing: a trainer has nothing outside its process."""

    def _begin(self) -> Callable[[], Tensor]:
        return CapturedStep(self._plain_step, self._generator) if self.captured else self._plain_step

    def _plain_step(self) -> Tensor:
        """Its stages' losses and gradient norms, (2, stages)."""
        windows = self._sampler.sample(self._generator)
        with tf32_allowed(self._spec.dtype == "tf32"):
            with self._autocast():
                losses = self.policy.stage_losses(windows, self._spec.loss_mean)
            self._optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()  # type: ignore[no-untyped-call]
        norms = [clip_grad_norm_(stage, self._spec.grad_clip) for stage in self._stages]
        if self.captured:  # AdamW must know that it is recorded, and warns if it is told so without need
            self._optimizer.param_groups[0]["capturable"] = torch.cuda.is_current_stream_capturing()
        self._optimizer.step()
        return torch.stack([losses.detach(), torch.stack(norms)])

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as tensors, numbers and containers of them (`torch.load(..., weights_only=True)` reads it).

        The tensors are the trainer's own: save or copy them before the next step.
        """
        on_gpu = self._device.type == "cuda"
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self._optimizer.state_dict()["state"],
            "step": self._steps_done,
            "sampler_generator": self._generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self._device) if on_gpu else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` (on any device) of a trainer with the same recipe, spec and seed.

        Torch's global RNG is set too, so load last before training goes on.
        """
        self.policy.load_state_dict(state["policy"])
        settings = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state["optimizer"], "param_groups": settings})
        self._steps_done = state["step"]
        self._generator.set_state(state["sampler_generator"].cpu())
        torch.set_rng_state(state["torch_rng"].cpu())
        if state["cuda_rng"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self._device)
        self._advance = self._begin()  # the optimizer has new tensors, a graph has the old addresses

    def _autocast(self) -> AbstractContextManager[None]:
        if self._spec.dtype != "bfloat16":
            return nullcontext()
        autocast: AbstractContextManager[None] = torch.autocast(self._device.type, dtype=torch.bfloat16)
        return autocast


def warm_up(step: int, warmup_steps: int) -> float:
    """The factor on the learning rate at optimizer step `step` (from 0): linear up to 1 at step `warmup_steps - 1`."""
    return min((step + 1) / max(warmup_steps, 1), 1.0)
