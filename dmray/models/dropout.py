"""Dropout whose masks are drawn by the module, or given: networks that train as one draw them before a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`nn.Dropout` (which draws from torch's global RNG) until it is given masks.

    `kept`: of which inputs the next forward pass in training mode keeps the elements, bool and of the input's shape. It
    is a buffer, so that `torch.func` can give each network of many its own; it is not saved.
    """

    kept: Tensor | None

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.register_buffer("kept", None, persistent=False)

    @property
    def given(self) -> Tensor | None:
        """The mask that the next forward pass takes."""
        return self.kept if self.training else None

    @property
    def draws(self) -> bool:
        """Whether it draws masks: in training mode, without a given one."""
        return self.training and self.kept is None

    @property
    def rate(self) -> float:
        """The probability that an element is dropped now."""
        return self.p if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.given is None:
            return super().forward(x)
        return torch.where(self.given, x / (1.0 - self.p), 0.0)


def has_given_masks(module: nn.Module) -> bool:
    """Whether a dropout in this module has masks that were given."""
    return any(isinstance(each, Dropout) and each.kept is not None for each in module.modules())
