"""Several trials of one shape trained as one network: a step of all costs little more than a step of one on a GPU.

Glossary (shapes: P seats, n numbers of a network with padding, S stages, B windows a seat):
    seat    the place of one trial's weights, optimizer state, step count and generator in the pack
    row     a seat's numbers in the flat tensors (P, n): all parameters, stage after stage

The parameters of all seats are views of one flat tensor, and so are both moments of AdamW. The weights of linear layers
are stored as (in, out): so their gradients come out dense in the order of storage, and one `torch.cat` puts a step's
gradients together. Clipping and AdamW are then a few operations on (P, n).

A seat's numbers depend on P, but not on what is in the other seats: all products are batched, and P never changes.
Seats that are empty or take no step compute too; nothing of it is kept.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dmray.datasets import Draw, Windows, WindowSampler
from dmray.models.selective_scan import scan_backend
from dmray.policies import SequencePolicy
from dmray.specs import TrainingSpec
from dmray.training.captured_step import CapturedStep
from dmray.training.determinism import tf32_allowed
from dmray.training.pack_masks import PackMasks

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_ALIGNED = 32  # numbers: a product's operand begins at a multiple of 128 bytes
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # those of torch's AdamW
UNCOMPILED = "packed training steps are not compiled and so several times slower than they could be"
_MOST_COMPILED = 1000  # shapes of networks in one process; torch would go on uncompiled after eight


class _Place(NamedTuple):
    """Where a parameter is in a row. `transposed`: it is stored with its two dimensions exchanged."""

    name: str
    shape: tuple[int, ...]
    transposed: bool
    first: int
    size: int

    def view(self, rows: Tensor) -> Tensor:
        """The parameter (..., *shape) in rows (..., n)."""
        stored = self.shape[::-1] if self.transposed else self.shape
        view = rows[..., self.first : self.first + self.size].view(*rows.shape[:-1], *stored)
        return view.transpose(-1, -2) if self.transposed else view

    def flat(self, values: Tensor) -> Tensor:
        """Values (P, *shape) in the order of storage, (P, size)."""
        return (values.transpose(-1, -2) if self.transposed else values).reshape(len(values), -1)

    @property
    def padding(self) -> int:
        return -self.size % _ALIGNED


class Pack:
    """`seats` networks of the shape of `policy`, each trained as a `Trainer` with its own seed would.

    The weights of `policy` are not used; its statistics are those of empty seats. It belongs to the pack: its dropout
    takes masks. The sampler draws the batch of one seat. On a GPU all work is on a stream of the pack's own, captured
    as a CUDA graph with `capture` "auto", and compiled with `compiled` (None: where it pays and a C compiler is found).
    Not for bfloat16 (`dmray.planning.packing`), and not for networks that draw random numbers other than masks of
    dropout (`dmray.models.dropout`). Each seat has its own masks: not those of a `Trainer` with its seed.
    """

    def __init__(
        self,
        policy: SequencePolicy,
        sampler: WindowSampler,
        spec: TrainingSpec,
        seats: int,
        device: str = "cpu",
        capture: Literal["auto", "off"] = "auto",
        compiled: bool | None = None,
    ) -> None:
        self._device, self._spec, self._sampler = torch.device(device), spec, sampler
        self._losses = _Losses(policy.train(), spec)
        self._places, self._stages = _places(policy)
        on_gpu = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if on_gpu else None  # type: ignore[no-untyped-call]
        self.captured = on_gpu and capture == "auto"
        self.compiled = on_gpu and can_compile() if compiled is None else compiled
        with self._on_stream():
            if self._stream is not None:
                self._stream.wait_stream(torch.cuda.default_stream(self._device))  # which has the sampler's data
            self._allocate(policy, seats)
            self._masks = PackMasks(self._losses, self._run_on_cpu, seats, self._device)
            self._buffers |= self._masks.buffers
        self._seeds: list[int | None] = [None] * seats
        self._rngs: list[tuple[Tensor, Tensor | None]] = [(torch.empty(0), None)] * seats
        self._active_seats: frozenset[int] = frozenset()
        self._packed_losses = self._maybe_compiled(_packed(self._losses))
        self._packed_update = self._maybe_compiled(self._update)
        self._packed_factors = self._maybe_compiled(self._factors)
        drawn_from = [*self._generators, *(self._mask_generators if self._masks.buffers else ())]
        self._advance = CapturedStep(self._step, *drawn_from) if self.captured else self._step

    def _allocate(self, policy: SequencePolicy, seats: int) -> None:
        last = self._places[-1]
        rows = (seats, last.first + last.size + last.padding)
        self._values, self._first, self._second = (torch.zeros(rows, device=self._device) for _ in range(3))
        self._steps, self._rates = (torch.zeros(seats, device=self._device, dtype=torch.float64) for _ in range(2))
        self._active = torch.zeros(seats, device=self._device, dtype=torch.bool)
        self._generators = [torch.Generator(self._device) for _ in range(seats)]
        self._mask_generators = [torch.Generator(self._device) for _ in range(seats)]
        self._parameters = {
            f"policy.{place.name}": place.view(self._values).detach().requires_grad_() for place in self._places
        }
        self._buffers = {
            f"policy.{name}": buffer.detach().to(self._device).expand(seats, *buffer.shape).clone()
            for name, buffer in policy.named_buffers()
        }
        self._padding = {
            size: torch.zeros(seats, size, device=self._device)
            for size in {place.padding for place in self._places} - {0}
        }

    def _run_on_cpu(self) -> Tensor:
        """A training pass of `policy` itself."""
        windows = self._sampler.sample(torch.Generator(self._device))
        tokens = {token: values.cpu() for token, values in windows.tokens.items()}
        found: Tensor = self._losses(Windows(tokens, windows.timesteps.cpu(), windows.valid.cpu()))
        return found

    @property
    def seats(self) -> int:
        return len(self._generators)

    @property
    def scan_backend(self) -> str | None:
        """The implementation of the selective scan; None for networks without one."""
        if not self._losses.policy.method.backbone.uses_selective_scan:
            return None
        return scan_backend(self._device, self._values.dtype, stacked=True)

    @property
    def gpu_uuid(self) -> str | None:
        return str(torch.cuda.get_device_properties(self._device).uuid) if self._device.type == "cuda" else None

    @property
    def occupied(self) -> frozenset[int]:
        """The seats that have a trial."""
        return frozenset(seat for seat, seed in enumerate(self._seeds) if seed is not None)

    @property
    def is_set_up(self) -> bool:
        """Whether a step was taken as all further ones will be: compiled, and captured if it is to be."""
        if isinstance(self._advance, CapturedStep):
            return self._advance.recorded
        return bool(self._active_seats)  # of the last step

    def join(self, seed: int, learning_rate: float, weights: Mapping[str, Tensor]) -> int:
        """Give a trial with these initial weights (a policy's state_dict) the first free seat; returns the seat."""
        seat = min(set(range(self.seats)) - self.occupied)
        self._rngs[seat] = (torch.Generator().manual_seed(seed).get_state(), None)
        with self._on_stream():
            self._generators[seat].manual_seed(seed)
            self._mask_generators[seat].manual_seed(seed)
            self._rates[seat] = learning_rate
            self._write(seat, weights, {}, 0)
        self._seeds[seat] = seed
        return seat

    def leave(self, seat: int) -> None:
        """Make the seat free."""
        self._seeds[seat] = None

    def advance(self, seats: Collection[int], steps: int) -> Tensor:
        """Take this number of steps with the trials in `seats`: stage losses and gradient norms, (steps, P, 2, S).

        Does not wait for the device: the result, on the CPU, is there after `event`. Rows of other seats mean nothing.
        """
        with self._on_stream():
            if (active := frozenset(seats)) != self._active_seats:
                self._active_seats = active
                self._active.copy_(torch.tensor([seat in active for seat in range(self.seats)]))
            both = (self._generators, self._mask_generators)
            resting = [(own[seat], own[seat].get_state()) for seat in self.occupied - active for own in both]
            metrics = torch.stack([self._advance() for _ in range(steps)])
            for generator, state in resting:  # every seat draws in every step
                generator.set_state(state)
            return metrics if self._stream is None else _to_pinned(metrics)

    def event(self) -> torch.cuda.Event | None:
        """An event after all work so far; None on a CPU, which has done it."""
        return None if self._stream is None else self._stream.record_event()

    def weights(self, seat: int) -> dict[str, Tensor]:
        """The policy's state_dict, on the CPU. Waits for the device."""
        with self._on_stream():
            row, saved = self._values[seat].cpu(), self._losses.policy.state_dict()
            found = {
                name: buffer[seat].cpu().clone()
                for full_name, buffer in self._buffers.items()
                if (name := full_name.removeprefix("policy.")) in saved
            }
        found |= {place.name: _copy(place.view(row)) for place in self._places}
        return {name: found[name] for name in saved}

    def state_dict(self, seat: int) -> dict[str, Any]:
        """The content of `Trainer.state_dict` for the seat's trial, on the CPU. Waits for the device."""
        with self._on_stream():
            first, second = self._first[seat].cpu(), self._second[seat].cpu()
            step = int(self._steps[seat])
        moments = {
            number: {
                "step": torch.tensor(float(step)),
                "exp_avg": _copy(place.view(first)),
                "exp_avg_sq": _copy(place.view(second)),
            }
            for number, place in enumerate(self._places)
        }
        torch_rng, cuda_rng = self._rngs[seat]
        drawn = self._mask_generators[seat].get_state()
        torch_rng, cuda_rng = (torch_rng, drawn) if self._device.type == "cuda" else (drawn, cuda_rng)
        return {
            "policy": self.weights(seat),
            "optimizer": moments if step else {},
            "step": step,
            "sampler_generator": self._generators[seat].get_state(),
            "torch_rng": torch_rng,
            "cuda_rng": cuda_rng,
        }

    def load_state_dict(self, seat: int, state: Mapping[str, Any]) -> None:
        """Continue the seat's trial from a `state_dict` of a pack or of a `Trainer`."""
        self._generators[seat].set_state(state["sampler_generator"].cpu())
        self._rngs[seat] = (state["torch_rng"], state["cuda_rng"])
        if (drawn := state["cuda_rng" if self._device.type == "cuda" else "torch_rng"]) is not None:
            self._mask_generators[seat].set_state(drawn.cpu())
        with self._on_stream():
            self._write(seat, state["policy"], state["optimizer"], state["step"])

    def _write(self, seat: int, weights: Mapping[str, Tensor], moments: Mapping[int, Any], step: int) -> None:
        self._first[seat], self._second[seat], self._steps[seat] = 0.0, 0.0, float(step)
        for number, place in enumerate(self._places):
            place.view(self._values[seat]).copy_(weights[place.name])
            if moments:
                place.view(self._first[seat]).copy_(moments[number]["exp_avg"])
                place.view(self._second[seat]).copy_(moments[number]["exp_avg_sq"])
        for name, buffer in self._buffers.items():
            if (own := weights.get(name.removeprefix("policy."))) is not None:
                buffer[seat].copy_(own)

    def _step(self) -> Tensor:
        """One step of the active seats: stage losses and gradient norms, (P, 2, S)."""
        self._masks.draw(self._mask_generators)
        draws = [self._sampler.draw(generator) for generator in self._generators]
        windows = self._sampler.cut(Draw(*(torch.cat(parts) for parts in zip(*draws, strict=True))))
        leaves = list(self._parameters.values())
        with tf32_allowed(self._spec.dtype == "tf32"):
            losses = self._packed_losses(self._parameters, self._buffers, _by_seat(windows, self.seats))
            gradients = torch.autograd.grad(losses.sum(), leaves)
        norms = self._packed_update(self._joined(gradients), *self._packed_factors())
        return torch.stack([losses.detach(), norms], dim=1)

    def _joined(self, gradients: Collection[Tensor]) -> Tensor:
        """The gradients of all parameters in rows, (P, n)."""
        parts = []
        for place, gradient in zip(self._places, gradients, strict=True):
            parts.append(place.flat(gradient))
            if place.padding:
                parts.append(self._padding[place.padding])
        return torch.cat(parts, dim=1)

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Count the step; AdamW's factor of the weights, of the first moment and of the second's root, (P, 1) each.

        In double precision, as Python numbers are, and not in `_update`: compiled, it would compute them per weight.
        """
        spec = self._spec
        self._steps.add_(self._active)
        rates = self._rates * (self._steps / max(spec.warmup_steps, 1)).clamp(max=1.0)
        one, two = (1.0 - beta**self._steps for beta in _BETAS)
        decay, scale, root = 1.0 - rates * spec.weight_decay, rates / one, two.sqrt()
        return decay.float()[:, None], scale.float()[:, None], root.float()[:, None]

    @torch.no_grad()
    def _update(self, gradients: Tensor, decay: Tensor, scale: Tensor, root: Tensor) -> Tensor:
        """Clip the gradients by stage and take AdamW's step in the active seats; the norms before clipping, (P, S)."""
        active, norms = self._active[:, None], []
        for stage in self._stages:
            norms.append(torch.linalg.vector_norm(gradients[:, stage], dim=1))
            gradient = gradients[:, stage] * (self._spec.grad_clip / (norms[-1] + 1e-6)).clamp(max=1.0)[:, None]
            values, first, second = (rows[:, stage] for rows in (self._values, self._first, self._second))
            new_first = torch.lerp(first, gradient, 1.0 - _BETAS[0])
            new_second = second * _BETAS[1] + (1.0 - _BETAS[1]) * gradient * gradient
            new_values = values * decay - scale * new_first / (new_second.sqrt() / root + _EPSILON)
            first.copy_(torch.where(active, new_first, first))
            second.copy_(torch.where(active, new_second, second))
            values.copy_(torch.where(active, new_values, values))
        return torch.stack(norms, dim=1)

    def _maybe_compiled(self, function: Callable[..., _T]) -> Callable[..., _T]:
        """`function`, compiled if the pack is; the whole pack goes on uncompiled if that fails."""
        if not self.compiled:
            return function
        compiled = _compile(function)

        def call(*given: Any) -> _T:
            if self.compiled:
                try:
                    found: _T = compiled(*given)
                except torch._dynamo.exc.TorchDynamoException as problem:
                    self.compiled = False
                    _log.warning("%s: %s", UNCOMPILED, str(problem).strip().splitlines()[0])
                else:
                    return found
            return function(*given)

        return call

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            yield


class _Losses(nn.Module):
    """A module whose forward pass is the losses: what `functional_call` can give parameters to."""

    def __init__(self, policy: SequencePolicy, spec: TrainingSpec) -> None:
        super().__init__()
        self.policy, self._mean = policy, spec.loss_mean

    def forward(self, windows: Windows) -> Tensor:
        return self.policy.stage_losses(windows, self._mean)


def can_compile() -> bool:
    """Whether `torch.compile` finds the C compiler that it needs; logs it if not."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        _log.warning(
            "%s: no C compiler (cc, gcc or clang, or $CC) is found; install one, for example with apt-get install gcc",
            UNCOMPILED,
        )
    return compiler is not None


def _compile(function: Any) -> Any:
    torch._dynamo.config.recompile_limit = _MOST_COMPILED
    torch._dynamo.config.accumulated_recompile_limit = _MOST_COMPILED
    return torch.compile(function, dynamic=False, fullgraph=True)  # parts of it would not be worth it


def _packed(losses: _Losses) -> Callable[..., Tensor]:
    """The losses (P, S) of all seats from their parameters, buffers and windows (P, B, ...)."""

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], windows: Windows) -> Tensor:
        found: Tensor = functional_call(losses, (parameters, buffers), (windows,))
        return found

    def packed(parameters: dict[str, Tensor], buffers: dict[str, Tensor], windows: Windows) -> Tensor:
        found: Tensor = vmap(one)(parameters, buffers, windows)
        return found

    return packed


def _by_seat(windows: Windows, seats: int) -> Windows:
    def split(values: Tensor) -> Tensor:
        return values.view(seats, -1, *values.shape[1:])

    tokens = {token: split(values) for token, values in windows.tokens.items()}
    return Windows(tokens, split(windows.timesteps), split(windows.valid))


def _places(policy: SequencePolicy) -> tuple[list[_Place], list[slice]]:
    """Where each parameter is in a row, in the order of `stage_parameters`, and the part of each stage."""
    linear = {id(module.weight) for module in policy.modules() if isinstance(module, nn.Linear)}
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    places: list[_Place] = []
    stages: list[slice] = []
    end = 0
    for stage in policy.stage_parameters():
        begin = end
        for parameter in stage:
            place = _Place(
                names[id(parameter)], tuple(parameter.shape), id(parameter) in linear, end, parameter.numel()
            )
            places.append(place)
            end += place.size + place.padding
        stages.append(slice(begin, end))
    return places, stages


def _copy(values: Tensor) -> Tensor:
    """With a storage of its own, which is saved with it."""
    return values.clone(memory_format=torch.contiguous_format)


def _to_pinned(values: Tensor) -> Tensor:
    """A copy in pinned memory, which the device writes without the host waiting."""
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
