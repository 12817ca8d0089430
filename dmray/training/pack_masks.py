"""The masks of dropout in a pack: each seat draws its own before a step, so that none depends on its neighbours.

Under `vmap` a network cannot draw from a generator of its own. Here one call for each seat fills the bits of all its
masks, and the networks' `dmray.models.dropout.Dropout` modules take them as buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dmray.models.dropout import Dropout


class _Part(NamedTuple):
    """Consecutive bits of a seat that are dropped with the same probability."""

    rate: float
    first: int
    end: int


class PackMasks:
    """The masks of all dropout modules of `network`, for each of `seats` networks like it.

    `run`: a training pass of the network on the CPU; shapes of inputs are always those of this pass. The modules of
    `network` take masks from then on. `buffers`: the masks (P, *shape) by the name of the module's buffer.
    """

    def __init__(self, network: nn.Module, run: Callable[[], object], seats: int, device: torch.device) -> None:
        found = {
            name: module for name, module in network.named_modules() if isinstance(module, Dropout) and module.p > 0.0
        }
        shapes = _shapes(found, run) if found else {}
        parts: list[_Part] = []
        for name, shape in shapes.items():
            first = parts[-1].end if parts else 0
            parts.append(_Part(found[name].p, first, first + prod(shape)))
        self._kept = torch.ones(seats, parts[-1].end if parts else 0, dtype=torch.bool, device=device)
        self.buffers: dict[str, Tensor] = {
            f"{name}.kept": self._kept[:, part.first : part.end].view(seats, *shape)
            for part, (name, shape) in zip(parts, shapes.items(), strict=True)
        }
        alike = [list(same) for _, same in groupby(parts, lambda part: part.rate)]
        self._parts = [_Part(same[0].rate, same[0].first, same[-1].end) for same in alike]

    def draw(self, generators: Sequence[torch.Generator]) -> None:
        """Draw the masks of the next step, each seat's from its generator."""
        for kept, generator in zip(self._kept, generators, strict=True):
            for part in self._parts:
                kept[part.first : part.end].bernoulli_(1.0 - part.rate, generator=generator)


def _shapes(modules: dict[str, Dropout], run: Callable[[], object]) -> dict[str, tuple[int, ...]]:
    """The shape of the input of each module that `run` calls. Leaves a mask that keeps all in each."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        shapes[name] = tuple(given[0].shape)

    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in modules.items()]
    for module in modules.values():
        module.kept = torch.ones((), dtype=torch.bool)
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return shapes
